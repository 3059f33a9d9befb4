"""Specs: hand-computed canonical rows, flags, and clear refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessing import dataset_spec
from preprocessing.convert import ConvertConfig, convert
from preprocessing.dataset_spec import Always, DatasetSpec, Equals, FirstActionZero, Linear, Terminate
from preprocessing.rlds import Episode, open_dataset
from preprocessing.store.episode_store import EpisodeStore
from rt_models.action_space import rt1_action_spec


def episode(steps: dict[str, Any], **metadata: Any) -> Episode:
    num_steps = len(next(iter(steps.values())))
    return Episode(shard="s", record=0, offset=0, crc=0, num_steps=num_steps, steps=steps, metadata=metadata)


def test_bridge_by_hand() -> None:
    spec = dataset_spec.load("bridge_dataset")
    source = np.array([[0, 0, 0, 0, 0, 0, 1], [0.01, -0.02, 0.03, 0.1, -0.2, 0.3, 0]], np.float32)
    expected = np.array(
        [[1, 0, 0, 0, 0, 0, 0, -1, 0, 0, 0], [1, 0.01, -0.02, 0.03, 0.1, -0.2, 0.3, 1, 0, 0, 0]], np.float32
    )
    found = spec.standardize({"action": source})
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert spec.action_mask == (False,) + (True,) * 7 + (False,) * 3
    assert spec.units[1:8] == ("m", "m", "m", "rad", "rad", "rad", "closedness")
    assert spec.flag_bits(episode({"action": source})).tolist() == [1, 0]
    assert spec.flag_bits(episode({"action": source[::-1]})).tolist() == [0, 0]


def test_fractal_by_hand() -> None:
    spec = dataset_spec.load("fractal20220817_data")
    steps = {
        "action/terminate_episode": np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]], np.int32),
        "action/world_vector": np.full((4, 3), 0.5, np.float32),
        "action/rotation_delta": np.full((4, 3), -0.25, np.float32),
        "action/gripper_closedness_action": np.array([[1], [0], [-1], [0]], np.float32),
        "action/base_displacement_vertical_rotation": np.full((4, 1), 0.125, np.float32),
        "action/base_displacement_vector": np.array([[1, 2]] * 4, np.float32),
    }
    found = spec.standardize(steps)
    assert found[:, 0].tolist() == [1, 2, 0, 1]
    assert found[1].tolist() == [2, 0.5, 0.5, 0.5, -0.25, -0.25, -0.25, 0, 0.125, 1, 2]
    assert all(spec.action_mask)


def test_a_scalar_terminates_where_it_is_one() -> None:
    values = Terminate(path="t").values({"t": np.array([0.0, 1.0, 0.5], np.float32)})
    assert values.ravel().tolist() == [1, 0, 1]


def test_a_chunk_of_actions_is_not_read_as_its_first_values() -> None:
    part = Linear(group="world_vector", path="action", unit="m")
    for shape in ((5, 7), (5, 7, 1), (5, 1, 7)):
        assert part.values({"action": np.ones(shape)}).shape == (5, 3)
    for reader in (part, Terminate(path="action")):
        with pytest.raises(ValueError, match=r"action has values of shape \(2, 7\) each step"):
            reader.values({"action": np.ones((5, 2, 7))})


def test_flags() -> None:
    steps = {"action": np.zeros((3, 7), np.float32)}
    success = Equals(name="failure", path="success", value=False)
    assert success.marks(episode(steps, success=np.False_)).all()
    assert not success.marks(episode(steps, success=np.True_)).any()
    assert Always(name="x").marks(episode(steps)).all()
    assert FirstActionZero(path="action", width=6).marks(episode(steps)).tolist() == [True, False, False]


def test_values_that_are_not_finite_are_refused() -> None:
    spec = dataset_spec.load("bridge_dataset")
    with pytest.raises(ValueError, match="action of step 1 is not finite"):
        spec.standardize({"action": np.array([[0.0] * 7, [np.inf] + [0.0] * 6])})


def test_an_unknown_dataset_gets_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="no dataset spec 'bridge_datset': did you mean 'bridge_dataset'"):
        dataset_spec.load("bridge_datset")
    with pytest.raises(ValueError, match="no dataset spec 'zzz': known are"):
        dataset_spec.load("zzz")


def test_the_hash_follows_what_is_declared_but_not_the_notes() -> None:
    spec = dataset_spec.load("bridge_dataset")
    assert spec.hash() == replace(spec, notes="other").hash()
    assert spec.hash() != replace(spec, control_hz=10).hash()


@pytest.mark.parametrize(
    "change",
    [
        {"cameras": {"wrist": "x"}},
        {"embedding": None},
        {"action": (Linear(group="arm", path="a", unit="m"),)},
        {"action": (Linear(group="world_vector", path="a", unit="m"),) * 2},
        {"flags": (Always(name="a"), Always(name="a"))},
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="dataset spec bridge_dataset"):
        replace(dataset_spec.load("bridge_dataset"), **change)


@pytest.mark.parametrize("name", dataset_spec.names())
def test_every_spec_names_itself_and_fills_the_action_space(name: str) -> None:
    spec: DatasetSpec = dataset_spec.load(name)
    assert spec.name == name
    assert len(spec.units) == len(spec.action_mask) == spec.space.size
    assert {part.path for part in spec.action} <= set(spec.source_actions)


def test_the_groups_are_those_of_the_action_space() -> None:
    names = rt1_action_spec().names
    for group, place in dataset_spec.GROUPS.items():
        assert all(name.startswith(group) for name in names[place])
    assert sorted(i for place in dataset_spec.GROUPS.values() for i in range(11)[place]) == list(range(11))


def test_the_shipped_sample_converts(tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[2] / "examples/metaworld_sample/1.0.0"
    summary = convert(str(source), str(tmp_path), ConvertConfig(workers=0, encoder="hash", split="val"))
    assert summary.quarantined == 0 and summary.episodes_out == summary.episodes_in > 0
    contract = EpisodeStore.open(str(tmp_path)).contract.datasets[0]
    varying = contract.statistics.varies()[[1, 2, 3, 7]]
    assert contract.control_hz > 0 and varying.all()
    assert np.abs(contract.statistics.maximum[1:4]).max() < 0.1  # metres a step, not simulator units


def test_specs_fit_the_real_schemas(data_dir: Path) -> None:
    folders = {path.parent.parent.name: path.parent for path in data_dir.glob("**/features.json")}
    for name in set(dataset_spec.names()) & set(folders):
        spec, dataset = dataset_spec.load(name), open_dataset(str(folders[name]))
        fields = {*dataset.step_paths, *dataset.episode_paths}
        assert set(spec.paths(tuple(spec.cameras))) <= fields, name
        for proprio in spec.proprio:
            assert int(np.prod(dataset.feature(proprio.path).fixed_shape())) == len(proprio.names), proprio.path
