"""Run as a program: datasets written by TFDS's own serializer and read back by TFDS and TensorFlow.

python write_with_tensorflow.py FOLDER ... Each folder holds features.json and episodes.pickle, or features.json and a
finished shard that TFDS cannot write. Left there are the shard, dataset_info.json and expected.pickle: each episode as
nested dictionaries of plain values, images decoded, `steps` as a list. A process of its own keeps TensorFlow out of
the other tests.
"""

from __future__ import annotations

import gc
import json
import pickle
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    gc.disable()  # with garbage collection TensorFlow takes half as long again to import

import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer

from preprocessing.tfds.writer import frame

LARGE = 1000  # pictures of more values are compared as bytes: as Python numbers they would take minutes
SHARD = "drawn-train.tfrecord-00000-of-00001"


def write(folder: Path) -> None:
    """Serialise episodes.pickle into the folder's shard with TFDS."""
    features = tfds.features.FeaturesDict.from_config(str(folder))
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    episodes = pickle.loads((folder / "episodes.pickle").read_bytes())
    payloads = [serializer.serialize_example(features.encode_example(episode)) for episode in episodes]
    (folder / SHARD).write_bytes(b"".join(frame(payload) for payload in payloads))


def read(folder: Path) -> list[Any]:
    """The folder's episodes as TFDS reads them, as plain values."""
    info = {
        "name": "drawn",
        "version": "1.0.0",
        "fileFormat": "tfrecord",
        "splits": [
            {
                "name": "train",
                "shardLengths": ["2"],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    builder: Any = tfds.builder_from_directory(str(folder))
    return [plain(episode) for episode in builder.as_dataset(split="train", shuffle_files=False)]


def plain(value: Any) -> Any:
    """Tensors and datasets as nested lists, numbers and bytes."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tf.data.Dataset):
        return [plain(item) for item in value]
    if isinstance(value, tf.RaggedTensor):
        return value.to_list()
    number = value.numpy()
    if isinstance(number, bytes):
        return number
    return number.tobytes() if number.size > LARGE else number.tolist()


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        if not (path / SHARD).exists():
            write(path)
        (path / "expected.pickle").write_bytes(pickle.dumps(read(path)))
