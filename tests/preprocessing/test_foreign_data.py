"""Data that no shipped spec describes, through the command: odd forms are converted or refused in one sentence."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from tensorflow_datasets.core import features as tfds_features
from tensorflow_datasets.proto import tf_example_pb2

from pipelines.preprocess import main as preprocess
from preprocessing.convert import ConvertConfig, convert
from preprocessing.rlds import open_dataset
from preprocessing.spec_file import draft
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image, image_size
from preprocessing.store.summary import quarantine
from preprocessing.tfds.tfrecord import read_records
from tests.support.tiny_rlds import (
    frame_record,
    jpeg,
    released_schemas,
    write_dataset,
    write_source,
)

STEPS = {
    "pixels": tfds_features.Tensor(shape=(6, 8, 3), dtype=np.uint8),
    "depth": tfds_features.Tensor(shape=(6, 8, 1), dtype=np.float32),
    "actions": tfds_features.FeaturesDict({"move": tfds_features.Tensor(shape=(7,), dtype=np.float64)}),
    "instruction": tfds_features.Text(),
    "note": tfds_features.Scalar(dtype=np.int32),
}
SPEC = {
    "name": "lab",
    "cameras": {"image": "pixels"},
    "instruction": "instruction",
    "control_hz": 5,
    "gripper": "absolute",
    "action": {
        "world_vector": {"path": "actions/move", "unit": "m"},
        "gripper_closedness_action": {"path": "actions/move", "first": 6, "unit": "closedness"},
    },
}


def episode(rng: np.random.Generator, num_steps: int) -> dict[str, Any]:
    steps = [
        {
            "pixels": rng.integers(0, 256, (6, 8, 3), np.uint8),
            "depth": rng.random((6, 8, 1), np.float32),
            "actions": {"move": rng.normal(size=7)},
            "instruction": "stack",
            "note": 3,
        }
        for _ in range(num_steps)
    ]
    return {"steps": steps, "operator": "someone", "hz": float(num_steps)}


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A dataset without is_first, with frames as plain numbers and a spec beside it."""
    rng = np.random.default_rng(0)
    once = {"operator": tfds_features.Text(), "hz": tfds_features.Scalar(dtype=np.float32)}
    features = tfds_features.FeaturesDict({"steps": tfds_features.Dataset(STEPS), **once})
    episodes = [episode(rng, num_steps) for num_steps in (2, 3)]
    return write_dataset(tmp_path / "lab", "lab", features, [episodes])


def with_spec(folder: Path, **changes: Any) -> str:
    path = folder.parent / "lab.yaml"
    path.write_text(yaml.safe_dump(SPEC | changes))
    return str(path)


@pytest.fixture
def run(lab: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """run(*flags, **changes of the spec) is the closing account."""

    def preprocessed(*flags: str, **changes: Any) -> dict[str, Any]:
        spec = with_spec(lab, **changes)
        out = str(tmp_path / "out")
        return preprocess([str(lab), out, "--dataset", spec, "--encoder", "hash", "--workers", "0", *flags])

    return preprocessed


def test_frames_kept_as_numbers_become_png(lab: Path, run: Callable[..., dict[str, Any]]) -> None:
    account = run()
    assert (account["episodes_out"], account["steps"], account["quarantined"]) == (2, 5, 0)
    table = pq.read_table(EpisodeStore.open(account["store"]).shards[0].path)
    first: Any = next(open_dataset(str(lab)).episodes("train"))
    np.testing.assert_array_equal(decode_image(table["image"][0].as_py()), first.steps["pixels"][0])
    assert table["is_first"].to_pylist() == [True, False, True, False, False]


def test_frames_kept_as_numbers_are_resized(run: Callable[..., dict[str, Any]]) -> None:
    account = run("--image-size", "4x4")
    table = pq.read_table(EpisodeStore.open(account["store"]).shards[0].path)
    assert {image_size(frame) for frame in table["image"].to_pylist()} == {(4, 4)}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cameras": {"image": "depth"}}, "'depth' holds no colour pictures of 8 bits"),
        ({"cameras": {"image": "instruction"}}, "'instruction' holds no colour pictures of 8 bits"),
        ({"instruction": "note"}, "'note' holds no text"),
        ({"instruction": "pixels"}, "'pixels' holds no text"),
        ({"instruction": "nothing"}, "has no field 'nothing'"),
        ({"source_actions": ["instruction"]}, "instruction has no fixed numeric shape"),
        ({"source_actions": ["operator"]}, "which has 'operator' once per episode: name a field of the steps"),
        ({"control_hz": "note"}, "which has 'note' at every step: name a field of the episode"),
        ({"control_hz": "operator"}, "'operator' holds no numbers"),
        ({"action": {"world_vector": {"path": "instruction", "unit": "m"}}}, "'instruction' holds no numbers"),
        ({"action": {"terminate_episode": {"path": "is_last"}}}, "which has no field 'is_last'"),
        ({"flags": {"a": {"path": "instruction", "equals": 1}}}, "'instruction' holds no numbers"),
        ({"flags": {"a": {"path": "operator", "first_zero": 1}}}, "which has 'operator' once per episode"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused(
    run: Callable[..., dict[str, Any]], tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        run(**changes)
    assert not (tmp_path / "out").exists()


def test_an_episode_without_a_rate_is_quarantined(lab: Path, run: Callable[..., dict[str, Any]]) -> None:
    file = next(lab.glob("*.tfrecord*"))
    records = list(read_records(io.BytesIO(file.read_bytes()), file.stat().st_size))
    message = tf_example_pb2.Example.FromString(records[0].payload)  # type: ignore[union-attr]
    message.features.feature["hz"].float_list.value[0] = 0
    file.write_bytes(frame_record(message.SerializeToString()) + frame_record(records[1].payload))  # type: ignore[union-attr]
    account = run(control_hz="hz")
    assert (account["episodes_out"], account["quarantined"]) == (1, 1)
    (line,) = quarantine(EpisodeStore.open(account["store"]))
    assert line["reason"].startswith("control_hz is 0.0, and must be")


def test_a_draft_finds_frames_kept_as_numbers(lab: Path) -> None:
    assert yaml.safe_load(draft(open_dataset(str(lab))))["cameras"] == {"image": "pixels"}


def test_kuka_through_the_command(tmp_path: Path, data_dir: Path) -> None:
    poses = np.arange(21, dtype=np.float32).reshape(3, 7)
    given = {"observation/clip_function_input/base_pose_tool_reached": poses, "success": [False]}
    schema = released_schemas(data_dir)["kuka"]
    source = write_source(tmp_path / "source", "kuka", schema, given)
    account = preprocess([str(source), str(tmp_path / "out"), "--workers", "0", "--image-size", "16x16"])
    assert (account["episodes_out"], account["steps"], account["quarantined"]) == (1, 3, 0)
    store = EpisodeStore.open(account["store"])
    table = pq.read_table(store.shards[0].path)
    np.testing.assert_array_equal(np.array(table["proprio"].to_pylist())[:, :7], poses)
    assert json.loads((Path(store.root) / "manifest.json").read_text())["flag_names"][0] == "failure"
    assert all(bits & 1 for bits in table["flags"].to_pylist())


def test_infinities_outside_of_the_action_are_no_fault(tmp_path: Path, data_dir: Path) -> None:
    given = {
        "observation/orientation_box": np.full((3, 2, 3), np.inf),
        "observation/image": [jpeg(np.random.default_rng(0))] * 3,
    }
    source = write_source(
        tmp_path / "source", "fractal20220817_data", released_schemas(data_dir)["fractal20220817_data"], given
    )
    assert convert(str(source), str(tmp_path / "out"), ConvertConfig(workers=0)).quarantined == 0
    (episode,) = open_dataset(str(source)).episodes("train")
    assert np.isinf(episode.steps["observation/orientation_box"]).all()  # type: ignore[union-attr]
    bad = write_source(
        tmp_path / "bad",
        "fractal20220817_data",
        released_schemas(data_dir)["fractal20220817_data"],
        given | {"action/world_vector": np.full((3, 3), np.inf)},
    )
    with pytest.raises(ValueError, match="action/world_vector of step 0 is not finite"):
        convert(str(bad), str(tmp_path / "out2"), ConvertConfig(workers=0))


@pytest.mark.parametrize(
    ("closed", "opened", "scaled", "odd"),
    [
        (1, -1, {}, False),
        (1, 0, {}, True),
        (1, 0, {"scale": 2, "offset": -1}, False),
        (0, 1, {"scale": -2, "offset": 1}, False),
        (255, 0, {}, True),
        (1, 1, {}, False),
    ],
)
def test_a_closedness_on_another_scale_is_remarked_on(
    tmp_path: Path, closed: float, opened: float, scaled: dict[str, float], odd: bool
) -> None:
    steps = episode(np.random.default_rng(0), 4)["steps"]
    for number, step in enumerate(steps):
        step["actions"]["move"][6] = closed if number % 2 else opened
    once = {"operator": tfds_features.Text(), "hz": tfds_features.Scalar(dtype=np.float32)}
    features = tfds_features.FeaturesDict({"steps": tfds_features.Dataset(STEPS), **once})
    source = write_dataset(tmp_path / "lab", "lab", features, [[{"steps": steps, "operator": "", "hz": 5.0}]])
    gripper = {"path": "actions/move", "first": 6, "unit": "closedness"} | scaled
    spec = with_spec(source, action={"gripper_closedness_action": gripper})
    summary = convert(str(source), str(tmp_path / "out"), ConvertConfig(dataset=spec, encoder="hash", workers=0))
    assert any("-1 opens, +1 closes" in remark for remark in summary.remarks) == odd
