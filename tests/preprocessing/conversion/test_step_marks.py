"""Marks inside of a record that say another episode begins, and fields that no model reads: neither is silent."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tensorflow_datasets.core import features as tfds
from tensorflow_datasets.proto import tf_example_pb2

from pipelines.preprocess import main as preprocess
from preprocessing import dataset_spec
from preprocessing.audit.store_audit import audit, save, saved
from preprocessing.conversion.step_marks import read_marks, require_one_episode
from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.summary import quarantine
from preprocessing.tfds.tfrecord import read_records
from tests.support.command_line import REPOSITORY, environment
from tests.support.tiny_rlds import (
    bridge_episode,
    bridge_features,
    frame_record,
    write_dataset,
)

HERE = ConvertConfig(workers=0)
Change = Callable[[int, dict[str, Any]], None]


def source_of(
    folder: Path, lengths: Sequence[int], change: Change, *, without: Sequence[str] = (), **more: Any
) -> Path:
    """A dataset of bridge_dataset's schema, with the step features `more` and without those of `without`; `change`
    does something to each step of the first episode."""
    steps = {**dict(bridge_features()["steps"].feature.items()), **more}
    features = {
        "steps": tfds.Dataset({name: feature for name, feature in steps.items() if name not in without}),
        "episode_metadata": bridge_features()["episode_metadata"],
    }
    episodes = [bridge_episode(np.random.default_rng(length), length) for length in lengths]
    for place, step in enumerate(episodes[0]["steps"]):
        change(place, step)
    for episode in episodes:
        for step in episode["steps"]:
            for name in {*step} - {*features["steps"].feature}:
                del step[name]
    return write_dataset(folder, "bridge_dataset", tfds.FeaturesDict(features), [episodes])


def marked(**places: Sequence[int]) -> Change:
    def change(place: int, step: dict[str, Any]) -> None:
        step.update({mark: place in set_at for mark, set_at in places.items()})

    return change


# --- Seams ---

SIX = 6
SEVERAL = [
    ({"is_first": (0, 3), "is_last": (2, 5)}, "at step 3 of 6 (is_last at step 2 and is_first at step 3)"),
    ({"is_first": (0,), "is_last": (2, 5)}, "at step 3 of 6 (is_last at step 2)"),
    ({"is_first": (0, 3), "is_last": (5,)}, "at step 3 of 6 (is_first at step 3)"),
    ({"is_first": (0, 5), "is_last": (4, 5)}, "at step 5 of 6 (is_first at step 5)"),
    ({"is_first": (0, 1), "is_last": (0, 5)}, "at step 1 of 6 (is_last at step 0)"),
    ({"is_first": (0, 2, 4), "is_last": (1, 3, 5)}, "at step 2 of 6"),
    ({"is_first": (), "is_last": (0,)}, "at step 1 of 6 (is_last at step 0)"),
    ({"is_first": (4,), "is_last": ()}, "at step 4 of 6 (is_first at step 4)"),
]
ONE = [
    {"is_first": (0,), "is_last": (5,), "is_terminal": (5,)},
    {"is_first": (), "is_last": (), "is_terminal": ()},
    {"is_first": (0,), "is_last": (5,), "is_terminal": (3, 4, 5)},
    {"is_first": (0,), "is_last": (4, 5), "is_terminal": (2,)},
    {"is_first": (0, 1), "is_last": (5,), "is_terminal": ()},
    {"is_first": range(SIX), "is_last": range(SIX), "is_terminal": ()},
]


@pytest.mark.parametrize(("places", "words"), SEVERAL)
def test_a_record_of_two_episodes_goes_to_quarantine(
    tmp_path: Path, places: dict[str, Sequence[int]], words: str
) -> None:
    source = source_of(tmp_path / "source", (SIX, 4), marked(**places))
    summary = convert(str(source), str(tmp_path / "out"), HERE)
    assert (summary.episodes_in, summary.episodes_out, summary.quarantined) == (2, 1, 1)
    (line,) = quarantine(EpisodeStore.open(summary.store))
    assert line["reason"].startswith(f"another episode begins in the middle, {words}") and line["record"] == 0


@pytest.mark.parametrize("places", ONE)
def test_marks_of_published_sets_cost_no_episode(places: dict[str, Sequence[int]]) -> None:
    steps = {mark: np.isin(np.arange(SIX), list(set_at)) for mark, set_at in places.items()}
    require_one_episode(read_marks(steps, SIX))
    for absent in steps:
        require_one_episode(read_marks({mark: column for mark, column in steps.items() if mark != absent}, SIX))


def test_a_spec_may_say_that_a_mark_means_something_else(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source", (SIX,), marked(is_last=(2, 5), is_terminal=(0,)))
    spec = tmp_path / "lab.yaml"
    spec.write_text(LAB + "ignored_marks: [is_last, is_terminal]\n")
    words = [str(source), str(tmp_path / "out"), "--dataset", str(spec), "--encoder", "hash", "--workers", "0"]
    table = pq.read_table(EpisodeStore.open(preprocess(words)["store"]).shards[0].path)
    assert table["is_last"].to_pylist() == [False] * 5 + [True] and not any(table["is_terminal"].to_pylist())
    known = dataset_spec.load("bridge_dataset")
    assert replace(known, ignored_marks=("is_last",)).hash() != known.hash()
    spec.write_text(LAB + "ignored_marks: [reward]\n")
    with pytest.raises(ValueError, match="ignored_marks must be a list of is_first, is_last, is_terminal, got"):
        preprocess(words)


LAB = """\
name: lab
cameras: {image: observation/image_0}
instruction: language_instruction
control_hz: 5
gripper: absolute
action: {world_vector: {path: action, unit: m}}
"""


def test_the_audit_knows_stores_converted_before(make_bridge: Callable[..., Path], tmp_path: Path) -> None:
    convert(str(make_bridge([SIX, 4], [5])), str(tmp_path / "out"), HERE)
    store = EpisodeStore.open(str(tmp_path / "out"))
    sound = audit(store)
    assert {v.name: v.finding for v in sound.verdicts}["records_hold_one_episode"] == "holds"
    save(store, sound)
    assert saved(store) == sound
    file = Path(store.root, "audit.json")
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "rules"}))
    assert saved(store) is None
    table = pq.read_table(store.shards[0].path)
    glued = pa.array([*[False] * 2, True, *[False] * 2, True, *[False] * 3, True])
    pq.write_table(
        table.set_column(table.schema.get_field_index("is_last"), "is_last", glued),
        store.shards[0].path,
        row_group_size=store.shards[0].row_group_rows,
    )
    (verdict,) = [v for v in audit(EpisodeStore.open(store.root)).verdicts if v.name == "records_hold_one_episode"]
    assert (verdict.finding, verdict.measured) == ("contradicted", 1)
    assert "in the middle of 1 of 3 episodes" in verdict.sentence


# --- What no model reads ---


def shaped(dtype: Any, *shape: int) -> Any:
    return tfds.Tensor(shape=shape, dtype=dtype)


def given(**values: Any) -> Change:
    return lambda _, step: step.update(values)


READ = [
    ({"reward": shaped(np.float64)}, given(reward=0.5), [0.5] * 3),
    ({"reward": shaped(np.float32, 1)}, given(reward=[0.5]), [0.5] * 3),
    ({"reward": shaped(np.int32, 1, 1)}, given(reward=[[2]]), [2] * 3),
    ({"reward": shaped(np.uint8)}, given(reward=2), [2] * 3),
    ({"reward": shaped(np.bool_)}, given(reward=True), [1] * 3),
    ({"reward": shaped(np.float32)}, given(reward=np.nan), [np.nan] * 3),
]
NOT_READ = [
    ({"reward": shaped(np.float32, 2)}, given(reward=[1, 2])),
    ({"reward": tfds.Text()}, given(reward="good")),
    ({"reward": shaped(np.float32, 0)}, given(reward=[])),
]


def columns_of(source: Path, out: Path, lengths: Sequence[int]) -> tuple[dict[str, list], tuple[str, ...]]:
    summary = convert(str(source), str(out), HERE)
    assert (summary.episodes_out, summary.quarantined) == (len(lengths), 0)
    table = pq.read_table(EpisodeStore.open(summary.store).shards[0].path)
    return table.slice(0, lengths[0]).to_pydict(), summary.remarks


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., tuple[dict[str, list], tuple[str, ...]]]:
    """stored(change, **features): the columns of the first episode's rows, and the remarks; nothing is quarantined."""

    def columns(change: Change, *, lengths: Sequence[int] = (3,), **more: Any) -> tuple[dict[str, list], tuple]:
        return columns_of(source_of(tmp_path / "source", lengths, change, **more), tmp_path / "out", lengths)

    return columns


@pytest.mark.parametrize(("features", "change", "expected"), READ)
def test_a_reward_of_any_number(stored: Any, features: Any, change: Change, expected: list) -> None:
    found, remarks = stored(change, **features)
    np.testing.assert_array_equal(found["reward"], expected)
    assert remarks == ()


@pytest.mark.parametrize(("features", "change"), NOT_READ)
def test_a_reward_of_another_form_is_left_empty(stored: Any, features: Any, change: Change) -> None:
    found, remarks = stored(change, **features)
    assert found["reward"] == [None] * 3
    assert remarks == ("reward is not one number per step: it is left empty",)


def write_rewards_of_many_lengths(folder: Path) -> None:
    """A reward of 0, 1 and 2 numbers in the three steps of an episode."""
    reward = tfds.Sequence(np.float32)
    source_of(folder, [3], lambda place, step: step.update(reward=[1.0] * place), reward=reward)


def test_a_reward_of_another_length_in_every_step_is_left_empty(tmp_path: Path) -> None:
    """TFDS loads TensorFlow to write it. That needs a process of its own: TensorFlow brings an LLVM and the simulator's
    OSMesa another, and a process that holds both crashes."""
    source = tmp_path / "source"
    here = "tests.preprocessing.conversion.test_step_marks"
    call = f"here.write_rewards_of_many_lengths(pathlib.Path({str(source)!r}))"
    program = f"import pathlib, {here} as here; {call}"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY, env=environment())
    found, remarks = columns_of(next(source.rglob("features.json")).parent, tmp_path / "out", [3])
    assert found["reward"] == [None] * 3
    assert remarks == ("reward is not one number per step: it is left empty",)


@pytest.mark.parametrize("mark", ["is_first", "is_last", "is_terminal"])
@pytest.mark.parametrize(
    ("feature", "off", "on"),
    [
        (shaped(np.bool_, 1), [False], [True]),
        (shaped(np.int64), 0, 1),
        (shaped(np.uint8, 1), [0], [255]),
        (shaped(np.float32), 0.0, 1.0),
        (shaped(np.float32, 1), [np.nan], [1.0]),
    ],
)
def test_marks_of_any_number(stored: Any, mark: str, feature: Any, off: Any, on: Any) -> None:
    expected = {"is_first": [True, False, False]}.get(mark, [False, False, True])
    found, remarks = stored(lambda place, step: step.update({mark: on if expected[place] else off}), **{mark: feature})
    assert found[mark] == expected and remarks == ()


def test_marks_of_another_form_come_from_the_place(stored: Any) -> None:
    more = {"is_first": tfds.Text(), "is_last": shaped(np.bool_, 2), "is_terminal": tfds.Text()}
    found, remarks = stored(given(is_first="yes", is_last=[True, False], is_terminal=""), **more)
    assert (found["is_first"], found["is_last"]) == ([True, False, False], [False, False, True])
    assert not any(found["is_terminal"]) and len(remarks) == 3
    assert remarks[1] == "is_last is not one number per step: the last step counts as last"


def test_a_store_of_terminal_steps_alone_says_that_nothing_is_trained_on(stored: Any) -> None:
    _, (remark,) = stored(given(is_terminal=True))
    assert remark.startswith("every step is terminal, and rtp train leaves such steps out")


def test_marks_and_reward_may_be_missing(stored: Any) -> None:
    found, remarks = stored(given(), without=("is_first", "is_last", "is_terminal", "reward"))
    assert (found["is_first"], found["reward"], remarks) == ([True, False, False], [None] * 3, ())


def test_a_record_whose_reward_or_mark_is_not_as_declared(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source", (3, 4, 5, 6), given())
    file = next(source.glob("*.tfrecord*"))
    messages = [
        tf_example_pb2.Example.FromString(record.payload)  # type: ignore[union-attr]
        for record in read_records(file.open("rb"), file.stat().st_size)
    ]
    del messages[0].features.feature["steps/reward"]
    messages[1].features.feature["steps/reward"].float_list.value.pop()
    messages[2].features.feature["steps/reward"].Clear()
    messages[2].features.feature["steps/reward"].int64_list.value.extend([1] * 5)
    del messages[3].features.feature["steps/is_first"]
    file.write_bytes(b"".join(frame_record(message.SerializeToString()) for message in messages))
    summary = convert(str(source), str(tmp_path / "out"), HERE)
    assert (summary.episodes_out, summary.quarantined) == (4, 0)
    assert summary.remarks == (
        "is_first of 1 of 4 episodes is not as features.json declares it: the first step counts as first there",
        "reward of 3 of 4 episodes is not as features.json declares it: it is left empty there",
    )
    store = EpisodeStore.open(summary.store)
    assert store.manifest.remarks == summary.remarks
    table = pq.read_table(store.shards[0].path)
    assert table["reward"].null_count == 3 + 4 + 5
    assert np.flatnonzero(table["is_first"].to_numpy()).tolist() == [0, 3, 7, 12]


@pytest.mark.parametrize(
    "extra",
    [
        {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "featuresDict": {}},
        {"pythonClassName": "lab.features.Skeleton", "jsonFeature": {"json": "{}"}},
        {"tensor": {"shape": {}, "dtype": "bfloat17", "encoding": "none"}},
        {"tensor": {"shape": {}, "dtype": "float32", "encoding": "brotli"}},
        {"video": {}},
        {"translation": {}},
        {},
    ],
)
def test_extra_fields_of_any_kind_cost_nothing(make_bridge: Callable[..., Path], tmp_path: Path, extra: Any) -> None:
    source = make_bridge([3])
    tree = json.loads((source / "features.json").read_text())
    fields = tree["featuresDict"]["features"]
    fields["more"] = extra
    steps = fields["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    steps["more"] = extra
    (source / "features.json").write_text(json.dumps(tree))
    assert convert(str(source), str(tmp_path / "out"), HERE).episodes_out == 1
    shutil.rmtree(tmp_path / "out")
    steps["observation"]["featuresDict"]["features"]["state"] = extra
    (source / "features.json").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="observation/state"):
        convert(str(source), str(tmp_path / "out"), HERE)


# --- What a reader refuses, it names ---


@pytest.mark.parametrize(
    ("path", "break_it", "words"),
    [
        ("observation/state", lambda f: f.float_list.value.pop(), "observation/state has 20 values"),
        ("action", lambda f: f.float_list.value.__setitem__(8, np.nan), "action of step 1 is not finite"),
        (
            "action",
            lambda f: f.float_list.value.__setitem__(6, 3e38),
            "action of step 0 comes to -6e+38 as gripper_closedness_action, more than float32 holds",
        ),
        ("language_instruction", lambda f: f.bytes_list.value.__setitem__(0, b"\xff"), "language_instruction: 'utf-8'"),
        (
            "language_embedding",
            lambda f: f.float_list.value.__setitem__(0, np.inf),
            "language_embedding: the instruction's vector holds values that are not finite",
        ),
        ("observation/image_0", lambda f: f.bytes_list.value.__setitem__(2, b"x"), "observation/image_0 of step 2"),
    ],
)
def test_what_is_refused_is_named(tmp_path: Path, path: str, break_it: Callable[[Any], Any], words: str) -> None:
    source = source_of(tmp_path / "source", (3, 4), given())
    file = next(source.glob("*.tfrecord*"))
    payloads = [record.payload for record in read_records(file.open("rb"), file.stat().st_size)]  # type: ignore[union-attr]
    message = tf_example_pb2.Example.FromString(payloads[0])
    break_it(message.features.feature[f"steps/{path}"])
    file.write_bytes(frame_record(message.SerializeToString()) + frame_record(payloads[1]))
    summary = convert(str(source), str(tmp_path / "out"), HERE)
    (line,) = quarantine(EpisodeStore.open(summary.store))
    assert words in line["reason"]


@pytest.mark.parametrize("state", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_kept_and_counted(stored: Any, state: float) -> None:
    def change(place: int, step: dict[str, Any]) -> None:
        if place:
            step["observation"]["state"] = np.full(7, state, np.float32)

    found, remarks = stored(change, lengths=(3, 2))
    np.testing.assert_array_equal(np.array(found["proprio"])[1:], state)
    (remark,) = remarks
    assert remark.startswith("the state is not finite at 2 steps of 1 of 2 episodes: it is kept as it is")
