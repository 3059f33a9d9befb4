"""What is written is read back equal: by TFDS without TensorFlow, by TensorFlow, and by our own reader."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.core.features import Dataset, FeaturesDict, Image, Scalar, Tensor, Text

from preprocessing.rlds import open_dataset
from preprocessing.tfds.tf_example import parse
from preprocessing.tfds.tfrecord import Record, read_records
from preprocessing.tfds.writer import RldsWriter, SplitPlan, frame
from tests.support.command_line import REPOSITORY

JPEGS = [simplejpeg.encode_jpeg(np.full((8, 8, 3), shade, np.uint8)) for shade in (0, 90, 255)]
STEP = {
    "observation": FeaturesDict({"image": Image(shape=(8, 8, 3), encoding_format="jpeg"), "text": Text()}),
    "action": FeaturesDict({"xyz": Tensor(shape=(3,), dtype=np.float32), "mode": Tensor(shape=(2,), dtype=np.int32)}),
    "reward": Scalar(dtype=np.float32),
    "is_last": Scalar(dtype=np.bool_),
}
METADATA = {"id": Text(), "seed": Scalar(dtype=np.int64), "success": Scalar(dtype=np.bool_)}
WRITER = RldsWriter(
    name="tiny",
    version="1.0.0",
    features=FeaturesDict({"steps": Dataset(STEP), "episode_metadata": FeaturesDict(METADATA)}),
    description="A few fields of every kind.",
    license="none",
)

floats = st.floats(width=32, allow_nan=False)
texts = st.text(st.characters(codec="utf-8"), max_size=8)
int32 = st.integers(-(2**31), 2**31 - 1)
steps = st.fixed_dictionaries(
    {
        "observation": st.fixed_dictionaries({"image": st.sampled_from(JPEGS), "text": texts}),
        "action": st.fixed_dictionaries(
            {
                "xyz": st.lists(floats, min_size=3, max_size=3).map(lambda values: np.array(values, np.float32)),
                "mode": st.lists(int32, min_size=2, max_size=2).map(lambda values: np.array(values, np.int32)),
            }
        ),
        "reward": floats,
        "is_last": st.booleans(),
    }
)
metadata = st.fixed_dictionaries({"id": texts, "seed": st.integers(-(2**63), 2**63 - 1), "success": st.booleans()})
episodes = st.fixed_dictionaries(
    {"steps": st.lists(steps, min_size=1, max_size=4), "episode_metadata": metadata},
)


def plain(value: Any) -> Any:
    """Arrays as lists, texts as bytes, columns of steps as a list of steps: what all readers agree on."""
    if isinstance(value, dict):
        return {key: _rows(item) if key == "steps" else plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return value.encode()
    return np.asarray(value).tolist() if not isinstance(value, bytes) else value


def _rows(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [plain(step) for step in value]
    leaf = value
    while isinstance(leaf, dict):
        leaf = next(iter(leaf.values()))

    def row(columns: Any, index: int) -> Any:
        if isinstance(columns, dict):
            return {key: row(column, index) for key, column in columns.items()}
        return plain(columns[index])

    return [row(value, index) for index in range(len(leaf))]


def payloads(folder: Path, split: str) -> list[bytes]:
    """The records of a split in order; the test fails on damage."""
    found: list[bytes] = []
    for path in sorted(folder.glob(f"*-{split}.tfrecord-*")):
        with path.open("rb") as file:
            for record in read_records(file, path.stat().st_size):
                assert isinstance(record, Record)
                found.append(record.payload)
    return found


def write(root: Path, train: list[Any], *, num_shards: int = 1) -> Path:
    return WRITER.write(root, {"train": SplitPlan(episodes=train, num_episodes=len(train), num_shards=num_shards)})


@settings(deadline=None, max_examples=40)
@given(st.lists(episodes, min_size=1, max_size=5), st.data())
def test_any_episodes_are_read_back_by_tfds(train: list[Any], data: st.DataObject) -> None:
    num_shards = data.draw(st.integers(1, len(train)))
    with tempfile.TemporaryDirectory() as root:
        folder = write(Path(root), train, num_shards=num_shards)
        info: Any = tfds.builder_from_directory(str(folder)).info
        decoders = {"steps": {"observation": {"image": tfds.decode.SkipDecoding()}}}
        found = [
            info.features.deserialize_example_np(payload, decoders=decoders) for payload in payloads(folder, "train")
        ]
        assert [plain(episode) for episode in found] == [plain(episode) for episode in train]
        assert info.splits["train"].num_examples == len(train) and info.splits["train"].num_shards == num_shards


def test_tensorflow_reads_back_what_was_written(tmp_path: Path) -> None:
    extremes = np.array([np.inf, -np.inf, np.finfo(np.float32).tiny], np.float32)
    train = [
        {
            "steps": [
                {
                    "observation": {"image": JPEGS[(number + index) % 3], "text": f"öffne {index} \U0001f916"},
                    "action": {"xyz": extremes, "mode": np.array([-(2**31), index], np.int32)},
                    "reward": -0.5 * index,
                    "is_last": index == number,
                }
                for index in range(number + 1)
            ],
            "episode_metadata": {"id": f"episode {number}", "seed": -(2**63) + number, "success": number % 2 == 0},
        }
        for number in range(5)
    ]
    folder, out = write(tmp_path, train, num_shards=2), tmp_path / "read.pickle"
    script = REPOSITORY / "tests/support/read_with_tensorflow.py"
    subprocess.run([sys.executable, str(script), str(folder), str(out), "train"], check=True, capture_output=True)
    assert [plain(episode) for episode in pickle.loads(out.read_bytes())["train"]] == [
        plain(episode) for episode in train
    ]


def test_our_reader_agrees(tmp_path: Path) -> None:
    train = [_numbered(number) for number in range(5)]
    dataset = open_dataset(str(write(tmp_path, train, num_shards=3)))
    shards = dataset.shards("train")
    assert (dataset.name, [shard.num_records for shard in shards]) == ("tiny", [1, 2, 2])
    found: list[Any] = list(dataset.episodes("train"))
    assert [int(episode.metadata["episode_metadata/seed"]) for episode in found] == list(range(5))
    assert [list(episode.steps["observation/image"]) for episode in found] == [
        [step["observation"]["image"] for step in episode["steps"]] for episode in train
    ]


@given(st.integers(1, 500), st.data())
def test_shards_hold_every_episode_and_differ_by_one_at_most(num_episodes: int, data: st.DataObject) -> None:
    num_shards = data.draw(st.integers(1, num_episodes))
    lengths = SplitPlan(episodes=[], num_episodes=num_episodes, num_shards=num_shards).shard_lengths()
    assert len(lengths) == num_shards and sum(lengths) == num_episodes
    assert max(lengths) - min(lengths) <= 1


def test_more_shards_than_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 episodes cannot fill 3 shards"):
        SplitPlan(episodes=[], num_episodes=2, num_shards=3)


@pytest.mark.parametrize(("root", "announced", "word"), [("", 1, "more"), ("new/er", 3, "fewer")])
def test_a_wrong_count_leaves_nothing_behind(tmp_path: Path, root: str, announced: int, word: str) -> None:
    plan = SplitPlan(episodes=[_numbered(0), _numbered(1)], num_episodes=announced)
    with pytest.raises(ValueError, match=f"split train has {word} than the {announced} episodes announced"):
        WRITER.write(tmp_path / root, {"train": plan})
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_is_not_written_over(tmp_path: Path) -> None:
    folder = write(tmp_path, [_numbered(0)])
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match="remove it"):
        write(tmp_path, [_numbered(1)])
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_metadata_counts_the_bytes_of_the_records(tmp_path: Path) -> None:
    folder = write(tmp_path, [_numbered(number) for number in range(4)], num_shards=2)
    info = json.loads((folder / "dataset_info.json").read_text())
    (split,) = info["splits"]
    assert split["shardLengths"] == ["2", "2"]
    assert int(split["numBytes"]) == sum(map(len, payloads(folder, "train")))


def test_a_record_lists_its_features_by_name() -> None:
    payload = WRITER.serialize(_numbered(2))
    names = sorted(parse(payload).lists)
    places = [payload.index(bytes([len(name)]) + name.encode()) for name in names]
    assert places == sorted(places) and len(names) == 9


def test_framing_is_that_of_tensorflow() -> None:
    # What tf.io.TFRecordWriter of TensorFlow 2.21 writes for this record.
    assert frame(b"abc").hex() == "0300000000000000b099490e6162636e57f121"


def _numbered(number: int) -> dict[str, Any]:
    step = {
        "observation": {"image": JPEGS[number % 3], "text": "go"},
        "action": {"xyz": np.zeros(3, np.float32), "mode": np.zeros(2, np.int32)},
        "reward": 0.0,
        "is_last": True,
    }
    return {"steps": [step] * (number + 1), "episode_metadata": {"id": "x", "seed": number, "success": True}}
