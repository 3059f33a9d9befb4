"""An RLDS dataset in TFDS layout that grows by an episode at a time, while it may be read.

Every episode is a shard of its own. It is renamed into place whole, and counts from the moment that dataset_info.json,
which is renamed into place too, names it: a reader sees all of an episode or nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from preprocessing.tfds.writer import RldsWriter, frame

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"  # a name that stays right when another shard comes
_FEATURES = "features.json"
_FRAMING = 16  # bytes around a record
MOST_EPISODES = 99_999  # with more, the names of all shards would have another digit


@dataclass(frozen=True, kw_only=True)
class GrowingDataset:
    """The version folder `root`/NAME/VERSION of `writer`, with the split `split`."""

    root: Path
    writer: RldsWriter
    split: str = "train"

    @property
    def folder(self) -> Path:
        return self.root / self.writer.name / self.writer.version

    def begin(self) -> None:
        """Make the folder, without episodes, where there is none. Raises ValueError where it holds other features."""
        with tempfile.TemporaryDirectory() as scratch:
            self.writer.features.save_config(scratch)
            features = Path(scratch, _FEATURES).read_text()
        written = self.folder / _FEATURES
        if written.exists() and json.loads(written.read_text()) != json.loads(features):
            raise ValueError(f"{self.folder} holds episodes with other fields: give another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole_bytes(written, features.encode())
        self._publish(self.lengths())

    def lengths(self) -> list[int]:
        """Bytes of the file of each published episode, in order."""
        try:
            info = json.loads((self.folder / "dataset_info.json").read_text())
        except FileNotFoundError:
            return []
        count = len(info["splits"][0]["shardLengths"]) if info["splits"] else 0
        return [self.shard(index).stat().st_size for index in range(count)]

    def shard(self, index: int) -> Path:
        return self.folder / f"{self.writer.name}-{self.split}.tfrecord-{index:05d}"

    def append(self, payload: bytes) -> Path:
        """Publish the serialised episode; its file. Raises OSError where it cannot be written, and leaves nothing."""
        lengths = self.lengths()
        if len(lengths) >= MOST_EPISODES:
            raise ValueError(f"{self.folder} has {MOST_EPISODES} episodes, and takes no more: give another folder")
        shard = self.shard(len(lengths))
        write_whole_bytes(shard, frame(payload))
        self._publish([*lengths, shard.stat().st_size])
        return shard

    def _publish(self, lengths: list[int]) -> None:
        split = {
            "filepathTemplate": _TEMPLATE,
            "name": self.split,
            "numBytes": str(sum(lengths) - _FRAMING * len(lengths)),
            "shardLengths": ["1"] * len(lengths),
        }
        info = json.dumps(self.writer.info([split] if lengths else []), indent=2, sort_keys=True)
        write_whole_bytes(self.folder / "dataset_info.json", info.encode())


def write_whole_bytes(path: Path, content: bytes) -> None:
    """The file whole or not at all, also where the machine loses its power."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
