"""Episodes out: an RLDS dataset in TFDS layout, written without TensorFlow.

`<folder>/features.json`, `dataset_info.json` and `<name>-<split>.tfrecord-00000-of-0000N`, readable by
`tfds.builder_from_directory(folder)` and by `preprocessing.rlds`. TFDS's own feature objects encode an episode (they
need no TensorFlow); the framing and the metadata are written here. The same episodes give the same bytes.
"""

from __future__ import annotations

import json
import shutil
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tensorflow_datasets.core.features import FeaturesDict

from preprocessing.store.json_files import JsonObject
from preprocessing.store.new_folders import made_for
from preprocessing.tfds.tfrecord import masked_crc32c


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """Episodes of one split, as nested dictionaries that fit the features; images as encoded bytes.

    `num_episodes` is known beforehand because a shard's name holds the number of shards; episodes are streamed, each
    shard takes a run of them, and runs differ in length by one at most.
    """

    episodes: Iterable[Mapping[str, object]]
    num_episodes: int
    num_shards: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.num_shards <= self.num_episodes:
            raise ValueError(
                f"{self.num_episodes} episodes cannot fill {self.num_shards} shards: "
                "ask for at least one shard and at most one per episode"
            )

    def shard_lengths(self) -> list[int]:
        """Episodes of each shard, in order."""
        bounds = [index * self.num_episodes // self.num_shards for index in range(self.num_shards + 1)]
        return [stop - start for start, stop in pairwise(bounds)]


@dataclass(frozen=True, kw_only=True)
class RldsWriter:
    """What stands in the metadata of a dataset, and how its episodes are encoded. `metadata` is what TFDS calls so:
    `builder.info.metadata`, in the file metadata.json."""

    name: str
    version: str
    features: FeaturesDict
    description: str
    citation: str = ""
    license: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)

    def write(self, root: Path, splits: Mapping[str, SplitPlan]) -> Path:
        """Write `<root>/<name>/<version>` and return it; the folder appears whole or not at all.

        Raises FileExistsError if it exists already.
        """
        folder = root / self.name / self.version
        if folder.exists():
            raise FileExistsError(f"{folder} exists: remove it or write somewhere else")
        with made_for(folder.parent):
            unfinished = root / f".{self.name}-{self.version}-{uuid.uuid4().hex[:8]}"
            try:
                self._write_unfinished(unfinished, splits)
                unfinished.rename(folder)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
        return folder

    def _write_unfinished(self, folder: Path, splits: Mapping[str, SplitPlan]) -> None:
        folder.mkdir()
        self.features.save_config(str(folder))
        infos = [self._write_split(folder, split, plan) for split, plan in splits.items()]
        (folder / "dataset_info.json").write_text(json.dumps(self.info(infos), indent=2, sort_keys=True))
        if self.metadata:
            (folder / "metadata.json").write_text(json.dumps(self.metadata, indent=2, sort_keys=True))

    def serialize(self, episode: Mapping[str, object]) -> bytes:
        """The tf.train.Example of one episode, its features in the order of their names."""
        layout: Any = self.features.get_serialized_info()
        example = ExampleSerializer(layout).get_tf_example(self.features.encode_example(episode))
        return example.SerializeToString(deterministic=True)

    def _write_split(self, folder: Path, split: str, plan: SplitPlan) -> JsonObject:
        lengths = plan.shard_lengths()
        num_bytes = 0
        episodes = iter(plan.episodes)
        for shard, length in enumerate(lengths):
            path = folder / f"{self.name}-{split}.tfrecord-{shard:05d}-of-{len(lengths):05d}"
            with path.open("wb") as file:
                for _ in range(length):
                    payload = self.serialize(_next(episodes, split, plan.num_episodes))
                    file.write(frame(payload))
                    num_bytes += len(payload)
        if next(episodes, None) is not None:
            raise ValueError(f"split {split} has more than the {plan.num_episodes} episodes announced")
        return {
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "name": split,
            "numBytes": str(num_bytes),
            "shardLengths": [str(length) for length in lengths],
        }

    def info(self, splits: list[JsonObject]) -> JsonObject:
        """dataset_info.json, as TFDS 4.9 writes its DatasetInfo proto: 64-bit numbers are strings."""
        return {
            "citation": self.citation,
            "description": self.description,
            "fileFormat": "tfrecord",
            "moduleName": f"{self.name}.{self.name}",
            "name": self.name,
            "redistributionInfo": {"license": self.license},
            "releaseNotes": {self.version: "Initial release."},
            "splits": splits,
            "version": self.version,
        }


def _next(episodes: Iterator[Mapping[str, object]], split: str, announced: int) -> Mapping[str, object]:
    for episode in episodes:
        return episode
    raise ValueError(f"split {split} has fewer than the {announced} episodes announced")


def frame(payload: bytes) -> bytes:
    """One TFRecord: length, its masked CRC, the payload, its masked CRC, little-endian."""
    length = struct.pack("<Q", len(payload))
    return b"".join(
        [length, struct.pack("<I", masked_crc32c(length)), payload, struct.pack("<I", masked_crc32c(payload))]
    )
