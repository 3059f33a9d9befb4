"""A folder of V-D4RL (arXiv 2206.04779) as a source of episodes: 84-pixel HDF5 shards or 64-pixel .npz episodes.

Step t of an episode is the frame at t with the action that *follows* it, which the files hold one row later
(`preprocessing/vd4rl/rows.py`), and that action's reward. N rows are N - 1 steps: the last frame has no action. An
imitator that is given row t's action learns to repeat what was done before; the rewards of row 0 and of the last step
decide whether a return is right.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from preprocessing.dataset_spec import DatasetSpec
from preprocessing.rlds import Corrupt, Episode, SourceShard, SplitSlice, folder_name, open_folder, selected, sliced
from preprocessing.store.file_system import FileSystem
from preprocessing.tfds.features import Column, Feature
from preprocessing.vd4rl.rows import EpisodeFrames, EpisodePlace, episodes_of_hdf5, opened_hdf5, read_hdf5, read_npz
from preprocessing.vd4rl.spec import IMAGE, TASK, task_spec

_SPLIT = "train"
_FILES_A_SHARD = 100  # of .npz, which hold an episode each
# dm_control's control steps a second, halved: every action is repeated once, rewards are summed over the two.
# The first three are V-D4RL's tasks, the last one's demonstrations are made by rtp simulate.
_CONTROL_HZ = {"walker_walk": 20.0, "cheetah_run": 50.0, "humanoid_walk": 20.0, "point_mass_easy": 25.0}
_PARTS = re.compile("|".join([*_CONTROL_HZ, "random|medium_replay|mixed|medium_expert|medium|expert"]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Vd4rlDataset:
    """A folder of files. `groups` are the episodes by source shard; `features` are by step path, without the frames'
    size where they differ."""

    folder: str
    name: str
    version: str
    features: Mapping[str, Feature]
    groups: Mapping[str, tuple[EpisodePlace, ...]]
    bytes_of: Mapping[str, int]

    @property
    def task(self) -> str:
        """The instruction of every episode: the task in the folder's path, else its name."""
        return " ".join(task_of(self.folder).split("_"))

    @property
    def control_hz(self) -> float | None:
        """Decisions a second, of a task that is known."""
        return _CONTROL_HZ.get(task_of(self.folder))

    @property
    def own_spec(self) -> DatasetSpec | None:
        """What the format says of its fields; None for a task whose rate is not known."""
        return None if self.control_hz is None else task_spec(self.name, self.features, self.control_hz)

    @property
    def step_paths(self) -> tuple[str, ...]:
        return tuple(self.features)

    @property
    def episode_paths(self) -> tuple[str, ...]:
        return (TASK,)

    def feature(self, path: str) -> Feature:
        """The feature of a step path, or of the task. Raises KeyError for one that is not there."""
        return Feature(key=TASK, kind="text", shape=(), dtype="string") if path == TASK else self.features[path]

    def split_slice(self, split: str) -> SplitSlice:
        """Everything is one split, "train"; "train[:10]" and the like are slices of its episodes."""
        count = sum(len(places) for places in self.groups.values())
        return sliced(split, {_SPLIT: count}, self.folder, declared_in="V-D4RL")

    def shards(self, split: str) -> tuple[SourceShard, ...]:
        """The shards that hold episodes of `split`. Raises ValueError as `split_slice` does."""
        every = tuple(
            SourceShard(path=f"{self.folder}/{name}", name=name, num_records=len(places), num_bytes=self.bytes_of[name])
            for name, places in self.groups.items()
        )
        return tuple(selected({_SPLIT: every}, self.split_slice(split)))

    def read_shard(
        self,
        shard: SourceShard,
        *,
        paths: Collection[str] | None = None,
        optional: Collection[str] = (),
        check_crc: bool = True,
    ) -> Iterator[Episode | Corrupt]:
        """Every episode of a shard; `paths` limits the columns. The files have no CRC but that of .npz, always read."""
        del check_crc
        asked = self.step_paths if paths is None else tuple(dict.fromkeys((*paths, *optional)))
        wanted = [path for path in asked if path != TASK]
        places = self.groups[shard.name][shard.first : shard.stop]
        number = shard.first
        for file, run in groupby(places, key=lambda place: place.file):
            for place, found in self._frames(file, list(run)):
                yield self._item(shard, number, place, found, wanted)
                number += 1

    def _frames(self, file: str, places: list[EpisodePlace]) -> Iterator[tuple[EpisodePlace, EpisodeFrames | str]]:
        """The episodes of a file, or in words why one cannot be read."""
        url = f"{self.folder}/{file}"
        if file.endswith(".npz"):
            for place in places:
                yield place, _or_reason(lambda: read_npz(url))
            return
        with opened_hdf5(url) as data:
            for place in places:
                yield place, _or_reason(lambda place=place: read_hdf5(data, url, place))

    def _item(
        self, shard: SourceShard, number: int, place: EpisodePlace, found: EpisodeFrames | str, paths: list[str]
    ) -> Episode | Corrupt:
        if isinstance(found, str):
            return Corrupt(shard=shard.name, record=number, offset=place.start, reason=found)
        columns = aligned(found)
        unlike = [path for path in paths if path not in columns]
        if unlike:
            reason = f"{place.file} has no {unlike[0]!r}, which the first episode has"
            return Corrupt(shard=shard.name, record=number, offset=place.start, reason=reason)
        return Episode(
            shard=shard.name,
            record=number,
            offset=place.start,
            crc=zlib.crc32(found.action_NA.tobytes(), zlib.crc32(found.image_NHWC.tobytes())),
            num_steps=len(found.action_NA) - 1,
            steps={path: columns[path] for path in paths},
            metadata={TASK: self.task.encode()},
        )


def aligned(rows: EpisodeFrames) -> dict[str, Column]:
    """Columns over N - 1 steps of N rows: frame and state of row t, action, reward and discount of row t + 1."""
    count = len(rows.action_NA) - 1
    place = np.arange(count)
    return {
        IMAGE: rows.image_NHWC[:-1],
        "action": rows.action_NA[1:],
        "reward": rows.reward_N[1:],
        "discount": rows.discount_N[1:],
        "is_first": place == 0,
        "is_last": place == count - 1,
        **{f"observation/{name}": values[:-1] for name, values in rows.state.items()},
    }


def is_vd4rl(filesystem: FileSystem, root: str) -> bool:
    """Whether a folder holds files of either layout."""
    return bool(_files(filesystem, root))


def task_of(folder: str) -> str:
    """The task in a path such as vd4rl/main/walker_walk/expert/84px; the last folder's name if there is none."""
    parts = [part for part in folder.split("/") if part in _CONTROL_HZ]
    return parts[-1] if parts else folder.rstrip("/").rpartition("/")[2]


def open_vd4rl(folder: str) -> Vd4rlDataset:
    """Open a folder of files, local or a URL. Raises ValueError if no file can be read, or layouts are mixed."""
    folder = str(folder).rstrip("/")
    filesystem, root = open_folder(folder)
    sizes = _files(filesystem, root)
    kinds = {name.rpartition(".")[2] for name in sizes}
    if len(kinds) > 1:
        raise ValueError(f"{folder} holds files of both layouts, {' and '.join(sorted(kinds))}: give a folder of one")
    if kinds == {"npz"}:
        names = sorted(sizes)
        runs = [names[first : first + _FILES_A_SHARD] for first in range(0, len(names), _FILES_A_SHARD)]
        groups = {run[0]: tuple(EpisodePlace(file=name, start=0, stop=0) for name in run) for run in runs}
        bytes_of = {run[0]: sum(sizes[name] for name in run) for run in runs}
    else:
        groups = {name: episodes_of_hdf5(f"{folder}/{name}", name) for name in sorted(sizes)}
        bytes_of = dict(sizes)
    first = _first_episode(folder, groups)
    return Vd4rlDataset(
        folder=folder,
        name=folder_name(
            "_".join(["vd4rl", *_PARTS.findall(root)]) if _PARTS.search(root) else root.rpartition("/")[2]
        ),
        version=f"{first.image_NHWC.shape[1]}px",
        features={path: _feature(path, column) for path, column in aligned(first).items()},
        groups=groups,
        bytes_of=bytes_of,
    )


def _first_episode(folder: str, groups: Mapping[str, tuple[EpisodePlace, ...]]) -> EpisodeFrames:
    """The first episode that can be read: the others must be like it."""
    reasons = []
    for place in (place for places in groups.values() for place in places):
        url = f"{folder}/{place.file}"
        if place.file.endswith(".npz"):
            found = _or_reason(lambda url=url: read_npz(url))
        else:
            with opened_hdf5(url) as data:
                found = _or_reason(lambda data=data, url=url, place=place: read_hdf5(data, url, place))
        if not isinstance(found, str):
            return found
        reasons.append(found)
    raise ValueError(f"{folder} has no episode that can be read: {reasons[0]}")


def _files(filesystem: FileSystem, root: str) -> dict[str, int]:
    if not filesystem.isdir(root):
        return {}
    entries = filesystem.ls(root, detail=True)
    names = {entry["name"].rpartition("/")[2]: int(entry["size"] or 0) for entry in entries if entry["type"] == "file"}
    return {name: size for name, size in names.items() if name.endswith((".hdf5", ".h5", ".npz"))}


def _or_reason(read: Callable[[], EpisodeFrames]) -> EpisodeFrames | str:
    try:
        return read()
    except ValueError as error:
        return " ".join(str(error).split())


def _feature(path: str, column: Column) -> Feature:
    values = np.asarray(column)
    return Feature(key=f"steps/{path}", kind="tensor", shape=values.shape[1:], dtype=values.dtype.name, outer=(None,))
