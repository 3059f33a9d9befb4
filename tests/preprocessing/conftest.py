"""Small RLDS datasets in TFDS layout, serialized by tensorflow_datasets itself and framed here."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.core import features as tfds_features

from preprocessing.tfrecord import masked_crc32c

TEXTS = ("put the cup in the sink", "open the drawer", "")


def frame_record(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", masked_crc32c(length)) + payload + struct.pack("<I", masked_crc32c(payload))


def write_dataset(
    folder: Path, name: str, features: Any, shards: Sequence[Sequence[dict[str, Any]]], *, split: str = "train"
) -> Path:
    """Write episodes (one list a shard) as `folder`/1.0.0 with features.json and dataset_info.json; that folder."""
    version = folder / "1.0.0"
    version.mkdir(parents=True)
    features.save_config(str(version))
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    for index, episodes in enumerate(shards):
        records = [serializer.serialize_example(features.encode_example(episode)) for episode in episodes]
        file = version / f"{name}-{split}.tfrecord-{index:05d}-of-{len(shards):05d}"
        file.write_bytes(b"".join(map(frame_record, records)))
    lengths = [str(len(episodes)) for episodes in shards]
    info = {"name": name, "version": "1.0.0", "splits": [{"name": split, "shardLengths": lengths}]}
    (version / "dataset_info.json").write_text(json.dumps(info))
    return version


def jpeg(rng: np.random.Generator, height: int = 16, width: int = 24) -> bytes:
    return simplejpeg.encode_jpeg(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def bridge_features() -> Any:
    """The fields of bridge_dataset that its spec reads."""
    image = tfds_features.Image(shape=(None, None, 3), encoding_format="jpeg")
    flag = tfds_features.Scalar(dtype=np.bool_)
    vector = {size: tfds_features.Tensor(shape=(size,), dtype=np.float32) for size in (7, 512)}
    steps = {
        "observation": {**{f"image_{i}": image for i in range(4)}, "state": vector[7]},
        "action": vector[7],
        "language_instruction": tfds_features.Text(),
        "language_embedding": vector[512],
        "reward": tfds_features.Scalar(dtype=np.float32),
        **dict.fromkeys(("is_first", "is_last", "is_terminal"), flag),
    }
    metadata = {"file_path": tfds_features.Text()}
    return tfds_features.FeaturesDict({"steps": tfds_features.Dataset(steps), "episode_metadata": metadata})


def bridge_episode(rng: np.random.Generator, num_steps: int, *, size: tuple[int, int] = (16, 24)) -> dict[str, Any]:
    """A random episode of `bridge_features`, whose instruction decides its shipped vector."""
    text = TEXTS[int(rng.integers(len(TEXTS)))]
    vector = np.random.default_rng(len(text)).normal(size=512).astype(np.float32)
    frames = {f"image_{i}": jpeg(rng, *size) for i in range(4)}
    steps = [
        {
            "observation": {**frames, "state": rng.normal(size=7).astype(np.float32)},
            "action": np.append(rng.normal(size=6), rng.integers(2)).astype(np.float32),
            "language_instruction": text,
            "language_embedding": vector,
            "reward": np.float32(step == num_steps - 1),
            "is_first": step == 0,
            "is_last": step == num_steps - 1,
            "is_terminal": step == num_steps - 1,
        }
        for step in range(num_steps)
    ]
    return {"steps": steps, "episode_metadata": {"file_path": "somewhere"}}


@pytest.fixture
def make_bridge(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """make_bridge(*shards) writes a dataset of bridge_dataset's schema; a shard is a list of episode lengths."""

    def make(*shards: Sequence[int], size: tuple[int, int] = (16, 24), name: str = "source") -> Path:
        rng = np.random.default_rng(7)
        episodes = [[bridge_episode(rng, length, size=size) for length in shard] for shard in shards]
        return write_dataset(tmp_path / name, "bridge_dataset", bridge_features(), episodes)

    yield make
