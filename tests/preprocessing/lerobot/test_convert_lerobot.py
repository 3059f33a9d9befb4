"""LeRobot folder -> draft of a spec -> store: what the store holds, and what it says of a video's loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from pipelines.training.checks import require_sound
from preprocessing.convert import ConvertConfig, convert
from preprocessing.episode_source import open_source
from preprocessing.lerobot.dataset import open_lerobot
from preprocessing.lerobot.export import ExportConfig, export_store
from preprocessing.rlds import Episode
from preprocessing.spec_file import draft, read_spec
from preprocessing.spec_space import draft_space
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image
from tests.support.tiny_lerobot import FEATURES, TOP, WRIST, brightness, episode, write_v3, write_v21


def filled_spec(source: Path, path: Path) -> Path:
    """The draft with its questions answered."""
    text = draft(open_source(str(source)))
    path.write_text(text.replace("gripper: '?'", "gripper: absolute").replace("unit: '?'", "unit: unitless"))
    return path


def converted(source: Path, out: Path, **settings: object) -> EpisodeStore:
    spec = filled_spec(source, out.with_suffix(".yaml"))
    settings = {"dataset": str(spec), "encoder": "hash", "workers": 0, **settings}
    convert(str(source), str(out), ConvertConfig(**settings))  # type: ignore[arg-type]
    return EpisodeStore.open(str(out))


def floats(store: EpisodeStore, shard: int, number: int, column: str) -> np.ndarray:
    table = store.read_episode(shard, number, [column])
    return np.asarray(table[column].combine_chunks().flatten()).reshape(table.num_rows, -1)


@pytest.mark.parametrize("layout", ["v3.0", "v2.1"])
def test_a_store_holds_the_numbers_and_the_frames(tmp_path: Path, layout: str) -> None:
    written = [episode(seed, length) for seed, length in enumerate((5, 9, 4))]
    source = tmp_path / "my_set"
    write_v3(source, [written]) if layout == "v3.0" else write_v21(source, written)
    store = converted(source, tmp_path / "out", cameras=("image", "wrist"))
    assert (store.manifest.dataset, store.manifest.version, store.manifest.control_hz) == ("my_set", layout, 10.0)
    assert store.manifest.proprio.names[0] == "observation.state/x"
    for number, original in enumerate(written):
        table = store.read_episode(0, number, ["image", "image_wrist", "reward", "is_last", "is_terminal"])
        assert np.array_equal(floats(store, 0, number, "source/action"), original.columns["action"])
        assert np.array_equal(floats(store, 0, number, "action")[:, 1:8], original.columns["action"])
        assert np.array_equal(floats(store, 0, number, "proprio"), original.columns["observation.state"])
        assert np.array_equal(floats(store, 0, number, "source/grid").ravel(), original.columns["grid"].ravel())
        assert np.array_equal(table["reward"].to_numpy(), original.columns["next.reward"])
        assert table["is_last"].to_pylist() == original.columns["next.done"].tolist()
        assert not any(table["is_terminal"].to_pylist())  # the last action counts
        wrist = [decode_image(frame) for frame in table["image_wrist"].to_pylist()]
        assert np.array_equal(wrist, original.wrist_NHWC)  # PNG passes untouched
        levels = [decode_image(frame).mean() for frame in table["image"].to_pylist()]
        assert np.abs(levels - brightness(number, np.arange(original.length))).max() < 4
    assert any("camera image were decoded from a video (h264)" in remark for remark in store.manifest.remarks)


def test_frames_of_another_size_are_encoded_once(tmp_path: Path) -> None:
    write_v3(tmp_path / "my_set", [[episode(0, 4)]])
    store = converted(tmp_path / "my_set", tmp_path / "out", image_size="16x24")
    assert decode_image(store.read_episode(0, 0, ["image"])["image"][0].as_py()).shape == (16, 24, 3)


def test_an_episode_whose_video_is_cut_goes_to_quarantine(tmp_path: Path) -> None:
    source = tmp_path / "my_set"
    write_v21(source, [episode(seed, 6) for seed in range(3)])
    video = source / f"videos/chunk-000/{TOP}/episode_000001.mp4"
    video.write_bytes(video.read_bytes()[:200])
    store = converted(source, tmp_path / "out")
    counts = store.manifest.counts
    assert (counts.episodes_in, counts.episodes_out, counts.quarantined) == (3, 2, 1)
    assert "episode_000001.mp4" in (Path(store.root) / "quarantine.jsonl").read_text()


def test_converting_again_in_parts_gives_the_same_rows(tmp_path: Path) -> None:
    write_v3(tmp_path / "my_set", [[episode(seed, 4) for seed in range(4)]])
    whole = converted(tmp_path / "my_set", tmp_path / "whole")
    part = converted(tmp_path / "my_set", tmp_path / "part", split="train[1:3]")
    assert part.manifest.split == "train-1-3"
    assert np.array_equal(floats(part, 0, 0, "action"), floats(whole, 0, 1, "action"))


def test_a_rate_that_the_dataset_does_not_have_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "my_set"
    write_v3(source, [[episode(0, 4)]])
    spec = filled_spec(source, tmp_path / "spec.yaml")
    spec.write_text(spec.read_text().replace("control_hz: 10\n", "control_hz: 30\n"))
    with pytest.raises(ValueError, match="control_hz is 30, and the dataset records 10 frames a second"):
        convert(str(source), str(tmp_path / "out"), ConvertConfig(dataset=str(spec), encoder="hash", workers=0))


# --- The draft ---


def test_a_draft_says_what_the_format_records_and_asks_the_rest(tmp_path: Path) -> None:
    write_v3(tmp_path / "my_set", [[episode(0, 4)]])
    text = draft(open_source(str(tmp_path / "my_set")))
    assert "control_hz: 10\n" in text and "gripper: '?'" in text and "unit: '?'" in text
    (tmp_path / "draft.yaml").write_text(text)
    with pytest.raises(ValueError, match="is still '\\?': fill it in"):
        read_spec(tmp_path / "draft.yaml")
    spec = read_spec(filled_spec(tmp_path / "my_set", tmp_path / "filled.yaml"))
    assert spec.cameras == {"image": TOP, "wrist": WRIST}
    assert {part.group: getattr(part, "first", None) for part in spec.action} == {
        "world_vector": 0,
        "rotation_delta": 3,
        "gripper_closedness_action": 6,
    }
    assert set(spec.source_actions) == {"action", "next.reward", "next.done", "grid", "counts"}


@pytest.mark.parametrize(
    "names, space",
    [
        ([f"{side}_{joint}" for side in ("left", "right") for joint in "abcdefg"], "two-arms-14d"),
        (["shoulder_pan.pos", "shoulder_lift.pos", "elbow_flex.pos", "wrist_flex.pos", "gripper.pos"], "my-arm"),
    ],
)
def test_a_set_of_joints_is_drafted_and_kept_in_its_own_space(tmp_path: Path, names: list[str], space: str) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(6, len(names))).astype(np.float32)
    one = episode(0, 6)
    one.columns.update({"action": numbers, "observation.state": numbers})
    vector = {"dtype": "float32", "shape": [len(names)], "names": names}
    write_v3(tmp_path / "arms", [[one]], features=FEATURES | {"action": vector, "observation.state": vector})
    text = draft(open_source(str(tmp_path / "arms")))
    filled = text.replace("name: '?'", f"name: {space}").replace("unit: '?'", "unit: rad")
    filled = filled.replace("gripper: '?'", "gripper: 1 is open, 0 is closed")
    (tmp_path / "arms.yaml").write_text(filled.replace("kind: '?'", "kind: absolute"))
    settings = ConvertConfig(dataset=str(tmp_path / "arms.yaml"), encoder="hash", workers=0)
    convert(str(tmp_path / "arms"), str(tmp_path / "out"), settings)
    store = EpisodeStore.open(str(tmp_path / "out"))
    assert store.contract.action.name == space and store.contract.action.size == len(names)
    assert np.array_equal(floats(store, 0, 0, "action"), numbers)
    export_store(store, str(tmp_path / "back"), ExportConfig())
    dataset = open_lerobot(str(tmp_path / "back"))
    (back,) = dataset.read_shard(dataset.shards("train")[0])
    assert isinstance(back, Episode) and np.array_equal(back.steps["action"], numbers)
    assert np.array_equal(back.steps["canonical_action"], numbers)


ARM = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]


@pytest.mark.parametrize(
    "names, space",
    [
        (ARM, None),  # a walker's six actuators have neither these names nor a gripper
        ([f"joint_{number}" for number in range(7)], "joints-7d"),
        ([*(f"joint_{number}" for number in range(6)), "gripper"], None),  # no pose of seven dimensions
        ([*(f"joint_{number}" for number in range(7)), "gripper"], None),  # places, not velocities
    ],
)
def test_the_draft_of_joints_is_no_shipped_space_of_other_dimensions(names: list[str], space: str | None) -> None:
    drafted = draft_space("action", len(names), unknown="?", names=names)
    if space is None:
        assert drafted["space"] == {"name": "?", "dimensions": names, "gripper": "?"}
        assert [part["first"] for part in drafted["action"].values()][-1] == len(names) - 1
    else:
        assert drafted["space"] == space
    assert draft_space("action", 7, unknown="?")["space"] == "end-effector-7d"


@pytest.mark.parametrize("scale, blocked", [(1, False), (1000, True)])
def test_the_audit_stands_between_a_wrong_unit_and_training(tmp_path: Path, scale: float, blocked: bool) -> None:
    """Units are not in the format: what the spec says of them is measured against the state."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(3):
        one = episode(number, 40)
        moves = rng.normal(scale=0.01, size=(40, 7)).astype(np.float32)
        one.columns["observation.state"] = (np.cumsum(moves, axis=0) - moves).astype(np.float32)
        one.columns["action"] = (moves * scale).astype(np.float32)
        made.append(one)
    write_v3(tmp_path / "my_set", [made])
    text = draft(open_source(str(tmp_path / "my_set"))).replace("gripper: '?'", "gripper: absolute")
    spec = yaml.safe_load(text.replace("unit: '?'", "unit: unitless"))
    spec["action"]["world_vector"]["unit"] = "m"
    spec["proprio"][0]["units"][:3] = ["m", "m", "m"]
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    settings = ConvertConfig(dataset=str(tmp_path / "spec.yaml"), encoder="hash", workers=0)
    convert(str(tmp_path / "my_set"), str(tmp_path / "out"), settings)
    store = EpisodeStore.open(str(tmp_path / "out"))
    if not blocked:
        require_sound([store], accepted=())
        return
    with pytest.raises(ValueError, match="world_vector_unit"):
        require_sound([store], accepted=())
