"""Small RLDS datasets in TFDS layout: serialized by tensorflow_datasets, or fabricated where it cannot."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.core import features as tfds_features
from tensorflow_datasets.proto import tf_example_pb2

from preprocessing.tfds.features import Feature, flatten
from preprocessing.tfds.tfrecord import masked_crc32c

TEXTS = ("put the cup in the sink", "open the drawer", "")


def frame_record(payload: bytes) -> bytes:
    """One TFRecord: length, CRC of the length, payload, CRC of the payload."""
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
    """An encoded frame of noise."""
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
    metadata = {"file_path": tfds_features.Text(), "hz": tfds_features.Scalar(dtype=np.int32)}
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
    return {"steps": steps, "episode_metadata": {"file_path": "somewhere", "hz": 5}}


def fabricate(features: Mapping[str, Feature], given: Mapping[str, Any], num_steps: int = 3) -> bytes:
    """A serialized episode of the schema: `given` columns by path, something plausible elsewhere."""
    rng, message = np.random.default_rng(3), tf_example_pb2.Example()
    for key, feature in features.items():
        column = given.get(key.removeprefix("steps/"))
        if column is None:
            column = [_plausible(feature, key, rng) for _ in range(num_steps if feature.outer else 1)]
        target = message.features.feature[key]
        if feature.is_bytes:
            target.bytes_list.value.extend(column)
        elif feature.encoding == "zlib":
            target.bytes_list.value.extend(zlib.compress(np.asarray(row, feature.dtype).tobytes()) for row in column)
        elif np.issubdtype(np.dtype(feature.dtype), np.floating):
            target.float_list.value.extend(np.asarray(column, np.float32).ravel())
        else:
            target.int64_list.value.extend(np.asarray(column).astype(np.int64).ravel())
    return message.SerializeToString()


def _plausible(feature: Feature, key: str, rng: np.random.Generator) -> Any:
    """A value that fits the feature; texts, pictures and padded texts where a spec expects them."""
    if feature.kind == "image":
        return simplejpeg.encode_jpeg(rng.integers(0, 255, (8, 10, 3), dtype=np.uint8))
    if feature.is_bytes:
        return b"lift-any" if key == "task_code" else b"move the arm"
    if key.endswith("observation/instruction"):
        return np.frombuffer(b"push it".ljust(512, b"\0"), np.uint8)
    return rng.normal(size=feature.shape).astype(feature.dtype)


def write_source(folder: Path, name: str, schema: dict[str, Any], given: Mapping[str, Any]) -> Path:
    """A dataset of one fabricated episode; the folder."""
    return write_records(folder, name, schema, [fabricate(flatten(schema), given)])


def write_records(folder: Path, name: str, schema: dict[str, Any], records: Sequence[bytes]) -> Path:
    """A dataset of these serialized episodes in one file; the folder."""
    folder.mkdir()
    (folder / "features.json").write_text(json.dumps(schema))
    split = {"name": "train", "shardLengths": [str(len(records))]}
    (folder / "dataset_info.json").write_text(json.dumps({"name": name, "version": "0.1.0", "splits": [split]}))
    (folder / f"{name}-train.tfrecord-00000-of-00001").write_bytes(b"".join(map(frame_record, records)))
    return folder


def released_schemas(data_dir: Path) -> dict[str, dict[str, Any]]:
    """features.json of every Open-X dataset in tests/data, and of Bridge, by dataset name."""
    folders = [*(data_dir / "openx_metadata").glob("*/*"), data_dir / "bridge_dataset/1.0.0"]
    pairs = [folder for folder in folders if (folder / "features.json").exists()]
    return {
        json.loads((f / "dataset_info.json").read_text())["name"]: json.loads((f / "features.json").read_text())
        for f in pairs
    }
