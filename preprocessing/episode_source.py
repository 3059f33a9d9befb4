"""Where episodes come from: an RLDS dataset, a LeRobot or a V-D4RL folder, behind what conversion reads of each."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

from preprocessing.dataset_spec import DatasetSpec
from preprocessing.lerobot.dataset import is_lerobot, open_lerobot
from preprocessing.rlds import Corrupt, Episode, SourceShard, SplitSlice, open_dataset, open_folder
from preprocessing.store.shard_files import reaching
from preprocessing.tfds.features import Feature
from preprocessing.vd4rl.dataset import is_vd4rl, open_vd4rl


class EpisodeSource(Protocol):
    """A dataset of episodes in shards. Paths name columns over an episode's steps, or fields of the episode."""

    @property
    def folder(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def control_hz(self) -> float | None:
        """Steps a second, where the format records it."""
        ...

    @property
    def own_spec(self) -> DatasetSpec | None:
        """What the fields mean, where the format itself says it."""
        ...

    @property
    def step_paths(self) -> tuple[str, ...]: ...
    @property
    def episode_paths(self) -> tuple[str, ...]: ...
    def feature(self, path: str) -> Feature: ...
    def split_slice(self, split: str) -> SplitSlice: ...
    def shards(self, split: str) -> tuple[SourceShard, ...]: ...
    def read_shard(
        self,
        shard: SourceShard,
        *,
        paths: Collection[str] | None = None,
        optional: Collection[str] = (),
        check_crc: bool = True,
    ) -> Iterator[Episode | Corrupt]: ...


def open_source(folder: str) -> EpisodeSource:
    """Open the dataset in `folder`, local or a URL, by what lies in it.

    Raises FileNotFoundError if the folder does not exist and ValueError if it holds nothing that is read here.
    """
    filesystem, root = open_folder(str(folder).rstrip("/"))
    with reaching(folder):
        is_rlds = filesystem.exists(f"{root}/features.json")
        if not is_rlds and is_lerobot(filesystem, root):
            return open_lerobot(folder)
        if not is_rlds and is_vd4rl(filesystem, root):
            return open_vd4rl(folder)
    return open_dataset(folder)
