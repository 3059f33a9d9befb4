"""Every spec on records of its dataset's schema: hand-computed rows in both conventions, through to a store.

Schemas are the released features.json; those under UNRELEASED were not at hand and are written from what is known of
them. Records are made here from the schema, because tensorflow_datasets cannot write the zlib tensors of two sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from preprocessing import dataset_spec
from preprocessing.conventions import held_openness, seven_d
from preprocessing.convert import ConvertConfig, convert
from preprocessing.provenance import provenance
from preprocessing.rlds import Episode, open_dataset
from preprocessing.store.episode_store import EpisodeStore
from rt_models.action_scaling import RT1X
from tests.support.tiny_rlds import released_schemas, write_source

INF = float("inf")
ONE_HOT = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], np.int32)
ARM = np.array([[0.1, -0.2, 0.3], [0, 0, 0.5], [0.25, 0, 0]], np.float32)
TURN = np.array([[0, 0.5, 0], [0.1, 0, -0.1], [0, 0, 0.25]], np.float32)
BASE = np.array([[0, 0.5], [1, 0], [0, 0]], np.float32)
STOP = np.array([0, 0, 1], np.float32)


def canonical(
    terminate: Any = 1, arm: Any = 0, turn: Any = 0, gripper: Any = 0, spin: Any = 0, base: Any = 0
) -> np.ndarray:
    rows = np.zeros((3, 11), np.float32)
    for place, values in zip(dataset_spec.GROUPS.values(), (terminate, arm, turn, gripper, spin, base), strict=True):
        rows[:, place] = np.asarray(values, np.float32).reshape(-1, 1) if np.ndim(values) == 1 else values
    return rows


RT1 = {
    "action/terminate_episode": ONE_HOT,
    "action/world_vector": ARM,
    "action/rotation_delta": TURN,
    "action/gripper_closedness_action": np.array([[0], [1], [0]], np.float32),
    "action/base_displacement_vertical_rotation": np.array([[0], [0.125], [0]], np.float32),
    "action/base_displacement_vector": BASE,
}
RT1_ROWS = canonical([1, 2, 0], ARM, TURN, [0, 1, 0], [0, 0.125, 0], BASE)
MOVE = {"action/terminate_episode": STOP, "action/world_vector": ARM, "action/rotation_delta": TURN}
SCALAR = {**MOVE, "action/gripper_closedness_action": np.array([1, 0, -1], np.float32)}
OPENS = {**MOVE, "action/open_gripper": np.array([True, False, True])}
TACO = np.concatenate([ARM, TURN, [[-1], [1], [0]]], axis=1).astype(np.float32)
HALF_TURN = np.array([0, 0, np.sin(np.pi / 4), np.cos(np.pi / 4)])  # a quarter turn about z
FRANKA_PLAY = np.concatenate([np.full((3, 7), 9), ARM, TURN, [[1], [0], [-1]], [[0], [0], [1]]], axis=1)
POSES = np.array([[1, 2, 3, 0, 0, 0, 1], [0] * 7, [1.5, 2, 3, *HALF_TURN]], np.float32)
EXTERNAL = "_dataset_converted_externally_to_rlds"


def flat(*gripper: float) -> dict[str, np.ndarray]:
    """[position, rotation, gripper], or without a gripper."""
    parts = [ARM, TURN, np.array(gripper)[:, None]] if gripper else [ARM, TURN]
    return {"action": np.concatenate(parts, axis=1).astype(np.float32)}


CLOSES = (flat(1, 0, -1), canonical(1, ARM, TURN, [1, 0, -1]), [0, 0.5, 1])

# name -> source fields, canonical rows, openness in the 7-D convention
CASES: dict[str, tuple[Mapping[str, np.ndarray], np.ndarray, list[float]]] = {
    "fractal20220817_data": ({**RT1, "observation/orientation_box": np.full((3, 2, 3), INF)}, RT1_ROWS, [1, 0, 0]),
    "kuka": (RT1, RT1_ROWS, [1, 0, 0]),
    "bridge": (OPENS, canonical([1, 1, 0], ARM, TURN, [-1, 1, -1]), [1, 0, 1]),
    "bridge_dataset": (
        {"action": np.concatenate([ARM, TURN, [[1], [0], [0.25]]], axis=1).astype(np.float32)},
        canonical(1, ARM, TURN, [-1, 1, 0.5]),
        [1, 0, 0.25],
    ),
    "taco_play": (
        {"action/terminate_episode": STOP, "action/rel_actions_world": TACO},
        canonical([1, 1, 0], ARM, TURN[:, ::-1], [-1, 1, 0]),
        [1, 0, 0.5],
    ),
    "jaco_play": (
        {
            "action/terminate_episode": ONE_HOT,
            "action/world_vector": ARM,
            "action/gripper_closedness_action": np.array([[0], [-1], [0]], np.float32),
        },
        canonical([1, 2, 0], ARM, 0, [0, -1, 0]),
        [0, 1, 1],
    ),
    "berkeley_cable_routing": (MOVE, canonical([1, 1, 0], ARM, TURN), [1, 1, 1]),
    "roboturk": (
        {**MOVE, "action/gripper_closedness_action": np.array([[1], [-1], [0]], np.float32)},
        canonical([1, 1, 0], ARM, TURN, [1, -1, 0]),
        [0, 1, 0.5],
    ),
    "nyu_door_opening_surprising_effectiveness": (
        {**MOVE, "action/gripper_closedness_action": np.array([[0], [0], [0]], np.float32)},
        canonical([1, 1, 0], ARM, TURN),
        [1, 1, 1],
    ),
    "viola": (SCALAR, canonical([1, 1, 0], ARM, TURN, [1, 0, -1]), [0, 0.5, 1]),
    "berkeley_autolab_ur5": (SCALAR, canonical([1, 1, 0], ARM, TURN, [1, 0, -1]), [0, 0, 1]),
    "toto": (OPENS, canonical([1, 1, 0], ARM, TURN, [-1, 1, -1]), [1, 0, 1]),
    "language_table": ({"action": ARM[:, :2]}, canonical(1, ARM * [1, 1, 0]), [1, 1, 1]),
    "bc_z": (
        {
            "action/future/xyz_residual": np.tile(ARM, 10),
            "action/future/axis_angle_residual": np.tile(TURN, 10),
            "action/future/target_close": np.tile(np.array([[0], [1], [1]]), 10),
        },
        canonical(1, ARM, TURN, [-1, 1, 1]),
        [1, 0, 0],
    ),
    **dict.fromkeys([f"austin_{name}{EXTERNAL}" for name in ("sailor", "sirius", "buds")], CLOSES),
    "utaustin_mutex": CLOSES,
    f"stanford_hydra{EXTERNAL}": (flat(1, 0, 0.5), canonical(1, ARM, TURN, [1, -1, 0]), [0, 1, 0.5]),
    f"nyu_franka_play{EXTERNAL}": (
        {"action": FRANKA_PLAY.astype(np.float32)},
        canonical([1, 1, 0], ARM, TURN, [-1, 0, 1]),
        [1, 0.5, 0],
    ),
    "droid": (
        {
            "action_dict/cartesian_velocity": np.concatenate([ARM, TURN], axis=1),
            "action_dict/gripper_position": np.array([[1], [0], [0.25]], np.float32),
        },
        canonical(1, ARM, TURN, [1, -1, -0.5]),
        [0, 1, 0.75],
    ),
    **dict.fromkeys(["dobbe", "fmb"], (flat(1, 0, 0.25), canonical(1, ARM, TURN, [-1, 1, 0.5]), [1, 0, 0.25])),
    "berkeley_fanuc_manipulation": (flat(), canonical(1, ARM, TURN), [1, 1, 1]),
    "bridge_data_msr": (flat(1, 0, 0.25), canonical(1, ARM, TURN, [-1, 1, 0.5]), [1, 0, 0.25]),
    "mt_opt": (
        {
            "action/target_pose": POSES,
            "action/close_gripper": np.array([False, True, False]),
            "action/open_gripper": np.array([False, False, False]),
            "action/terminate": np.array([False, False, True]),
        },
        canonical([1, 1, 0], [[0, 0, 0], [0, 0, 0], [0.5, 0, 0]], [[0, 0, 0], [0, 0, 0], [0, 0, np.pi / 2]], [0, 1, 0]),
        [1, 0, 0],
    ),
}
UNRELEASED = {
    "toto": {
        "observation/image": (480, 640),
        "observation/state": 7,
        "action/world_vector": 3,
        "action/rotation_delta": 3,
    },
    "language_table": {
        "observation/rgb": (360, 640),
        "observation/effector_translation": 2,
        "observation/effector_target_translation": 2,
        "action": 2,
    },
    "droid": {
        "observation/exterior_image_1_left": (180, 320),
        "observation/exterior_image_2_left": (180, 320),
        "observation/wrist_image_left": (180, 320),
        "observation/cartesian_position": 6,
        "observation/gripper_position": 1,
        "action": 7,
        "action_dict/cartesian_velocity": 6,
        "action_dict/gripper_position": 1,
        "language_instruction": "text",
    },
    "dobbe": {
        "observation/wrist_image": (256, 256),
        "observation/xyz": 3,
        "observation/rot": 3,
        "observation/gripper": 1,
        "action": 7,
        "language_instruction": "text",
        "language_embedding": 512,
    },
    "fmb": {
        **{f"observation/image_{place}": (256, 256) for place in ("side_1", "side_2", "wrist_1", "wrist_2")},
        "observation/eef_pose": 7,
        "observation/state_gripper_pose": 1,
        "action": 7,
        "language_instruction": "text",
    },
    f"furniture_bench{EXTERNAL}": {
        "observation/image": (256, 256),
        "observation/wrist_image": (256, 256),
        "action": 8,
        "language_instruction": "text",
        "language_embedding": 512,
    },
}


def unreleased_schema(name: str) -> dict[str, Any]:
    """features.json of a set whose own was not at hand."""

    def tensor(shape: list[int], dtype: str) -> dict[str, Any]:
        return {"tensor": {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype, "encoding": "none"}}

    leaves: dict[str, Any] = {f: tensor([], "bool") for f in ("is_first", "is_last", "is_terminal")}
    sizes: dict[str, Any] = UNRELEASED[name]
    for path, size in sizes.items():
        image = {"image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8", "encodingFormat": "jpeg"}}
        number = tensor([], "string") if isinstance(size, str) else tensor([size], "float32")
        leaves[path] = image if isinstance(size, tuple) else number
    if name == "toto":
        leaves |= {"action/open_gripper": tensor([], "bool"), "action/terminate_episode": tensor([], "float32")}
        leaves |= {"observation/natural_language_instruction": tensor([], "string")}
        leaves |= {"observation/natural_language_embedding": tensor([512], "float32")}
    elif name == "language_table":
        leaves["observation/instruction"] = tensor([512], "int32")
    steps = {"sequence": {"feature": {"featuresDict": {"features": leaves}}, "length": "-1"}}
    return {"featuresDict": {"features": {"steps": steps}}}


@pytest.mark.parametrize("name", CASES)
def test_hand_computed_rows_in_both_conventions(name: str, data_dir: Path, tmp_path: Path) -> None:
    given, expected, openness = CASES[name]
    schema = unreleased_schema(name) if name in UNRELEASED else released_schemas(data_dir)[name]
    source = write_source(tmp_path / "source", name, schema, given)
    spec = dataset_spec.load(name)
    encoder = None if spec.embedding else "hash"
    summary = convert(str(source), str(tmp_path / "out"), ConvertConfig(workers=0, encoder=encoder))
    assert (summary.episodes_out, summary.quarantined, summary.steps) == (1, 0, 3)
    store = EpisodeStore.open(str(tmp_path / "out"))
    table = pq.read_table(store.shards[0].path)
    found = np.array(table["action"].to_pylist(), np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    lacking = ~np.array(spec.action_mask)
    lacking[0] = False
    assert not expected[:, lacking].any()
    converted = seven_d(found, spec.gripper)
    np.testing.assert_allclose(converted[:, :6], expected[:, 1:7], atol=1e-6)
    np.testing.assert_allclose(converted[:, 6], openness)
    for path in spec.source_actions:
        if path in given:
            kept = np.array(table[f"source/{path}"].to_pylist())
            np.testing.assert_array_equal(kept, np.asarray(given[path]).reshape(kept.shape))


POSES_OF_THEIR_OWN = {  # name -> values of the flat action, the gripper's place in it
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": (8, 7),
    "dlr_edan_shared_control_converted_externally_to_rlds": (7, 6),
    "ucsd_kitchen_dataset_converted_externally_to_rlds": (8, 6),
    "cmu_stretch": (8, 6),
}


FURNITURE = f"furniture_bench{EXTERNAL}"


def test_a_change_by_a_quaternion_stays_one_and_is_no_motion_where_nothing_turns(tmp_path: Path) -> None:
    given = np.concatenate([ARM, np.tile([0, 0, 0, 1], (3, 1)), [[-1], [1], [1]]], axis=1).astype(np.float32)
    columns = {"action": given, "is_terminal": np.zeros(3, bool)}
    source = write_source(tmp_path / "source", FURNITURE, unreleased_schema(FURNITURE), columns)
    convert(str(source), str(tmp_path / "out"), ConvertConfig(workers=0))
    store = EpisodeStore.open(str(tmp_path / "out"))
    table = pq.read_table(store.shards[0].path)
    np.testing.assert_array_equal(np.array(table["action"].to_pylist(), np.float32), given)
    assert [meaning.neutral for meaning in store.dataset.meanings[:7]] == [0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("name", POSES_OF_THEIR_OWN)
def test_commanded_poses_stay_what_they_are(name: str, data_dir: Path, tmp_path: Path) -> None:
    size, gripper = POSES_OF_THEIR_OWN[name]
    given = np.arange(3 * size, dtype=np.float32).reshape(3, size)
    source = write_source(tmp_path / "source", name, released_schemas(data_dir)[name], {"action": given})
    convert(str(source), str(tmp_path / "out"), ConvertConfig(workers=0))
    store = EpisodeStore.open(str(tmp_path / "out"))
    table = pq.read_table(store.shards[0].path)
    np.testing.assert_array_equal(np.array(table["action"].to_pylist(), np.float32), given)
    assert not dataset_spec.load(name).space.is_rt1
    assert {meaning.kind for meaning in store.dataset.meanings} == {"absolute"}
    assert store.contract.action.names[gripper].startswith("gripper_")


def test_every_spec_has_a_case() -> None:
    assert set(dataset_spec.names()) == set(CASES) | set(POSES_OF_THEIR_OWN) | {"metaworld_sample", FURNITURE}


WITHOUT_SPEC = {  # released schemas whose actions no spec can hold, and why
    "tidybot": "its action is a text: the plan of a language model",
}


def test_every_released_schema_has_a_spec_or_a_reason(data_dir: Path) -> None:
    assert set(released_schemas(data_dir)) - set(dataset_spec.names()) == set(WITHOUT_SPEC)


@pytest.mark.parametrize("name", dataset_spec.names())
def test_every_spec_names_the_source_of_its_units_and_gripper(name: str) -> None:
    said = provenance(name)
    spec = dataset_spec.load(name)
    assert said.units and said.gripper and said.rate and said.rotation
    if "unitless" in spec.units[1:4]:
        assert "unitless" in said.units and any("scale" in what or "units" in what for what in said.unknown)
    assert (spec.gripper == "none") == any(word in said.gripper for word in ("none", "not recorded"))
    has_rotation = any(part.group.startswith(("rotation", "quaternion", "euler")) for part in spec.action)
    assert has_rotation != said.rotation.startswith("none")


@pytest.mark.parametrize("name", sorted((set(CASES) | set(POSES_OF_THEIR_OWN)) - set(UNRELEASED)))
def test_every_path_of_a_spec_is_in_the_released_schema(name: str, data_dir: Path, tmp_path: Path) -> None:
    source = write_source(tmp_path / "s", name, released_schemas(data_dir)[name], {})
    dataset, spec = open_dataset(str(source)), dataset_spec.load(name)
    paths = {*dataset.step_paths, *dataset.episode_paths}
    assert set(spec.paths(tuple(spec.cameras))) <= paths
    assert spec.embedding is None or spec.embedding in paths
    for part in spec.proprio:
        assert int(np.prod(dataset.feature(part.path).fixed_shape())) == len(part.names), part.path


def test_rotations_of_two_conventions_are_not_called_the_same() -> None:
    units = {name: dataset_spec.load(name).units[4] for name in CASES}
    assert units["bc_z"] == "difference of axis-angle components"
    assert units["bridge_dataset"] == "rad"


def test_padding_of_viola_s_gripper_is_flagged(tmp_path: Path, data_dir: Path) -> None:
    source = write_source(tmp_path / "viola", "viola", released_schemas(data_dir)["viola"], SCALAR)
    episode = next(open_dataset(str(source)).episodes("train"))
    assert isinstance(episode, Episode)
    assert dataset_spec.load("viola").flag_bits(episode).tolist() == [0b01, 0b11, 0b01]


def test_rt1x_has_no_scaling_for_taco_play_whose_order_it_read_differently() -> None:
    assert not RT1X.knows("taco_play")
    assert "yaw, pitch, roll" in dataset_spec.load("taco_play").notes


def test_instructions_that_are_not_texts(tmp_path: Path, data_dir: Path) -> None:
    table = write_source(tmp_path / "lt", "language_table", unreleased_schema("language_table"), {})
    mt_opt = write_source(tmp_path / "mt", "mt_opt", released_schemas(data_dir)["mt_opt"], {})
    for source, text in ((table, "push it"), (mt_opt, "lift any")):
        spec = dataset_spec.load(open_dataset(str(source)).name)
        episode = next(open_dataset(str(source)).episodes("train"))
        assert isinstance(episode, Episode)
        assert spec.instruction.texts(episode) == [text] * 3


def test_kuka_failures_and_uninformative_instructions_are_flagged(tmp_path: Path, data_dir: Path) -> None:
    schema = released_schemas(data_dir)["kuka"]
    spec = dataset_spec.load("kuka")
    for success, bits in (([True], 0b10), ([False], 0b11)):
        source = write_source(tmp_path / str(success), "kuka", schema, {"success": success})
        episode = next(open_dataset(str(source)).episodes("train"))
        assert isinstance(episode, Episode)
        assert spec.flag_bits(episode).tolist() == [bits] * 3


def test_held_openness_by_hand() -> None:
    commands = np.array([0, 0.05, 1, 0, -1, 0, 0.2], np.float32)
    assert held_openness(commands).tolist() == [1, 1, 0, 0, 1, 1, 0]
    assert held_openness(-commands).tolist() == [0, 0, 1, 1, 0, 0, 1]
    assert held_openness(np.zeros(3)).tolist() == [1, 1, 1]
