"""A LeRobot folder (v3.0, v2.1, v2.0) as a source of episodes, with pyarrow and PyAV alone.

Step paths are LeRobot's feature names, such as "observation.images.top", and two of ours: "task", the text of
`task_index`, and "reward", another name of `next.reward` (the reward that follows the frame's action, as in RLDS).
`next.done` marks the last frame, whose action counts: it is no `is_terminal`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa

from preprocessing.lerobot.columns import column_values, fingerprint, one_number_a_step
from preprocessing.lerobot.metadata import (
    INFO,
    REWARD,
    TASK,
    EpisodeEntry,
    LeRobotInfo,
    VideoSpan,
    read_episodes,
    read_info,
    read_tasks,
)
from preprocessing.lerobot.rows import EpisodeRows, Rows
from preprocessing.lerobot.video import VideoFrames
from preprocessing.rlds import Corrupt, Episode, SourceShard, SplitSlice, folder_name, open_folder, sliced
from preprocessing.store.file_system import FileSystem
from preprocessing.tfds.features import Column, Feature, naming

_STEPS = "steps/"
_FRAME, _TIME = "frame_index", "timestamp"
_HALF_A_FRAME = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class LeRobotDataset:
    """A LeRobot folder. `groups` are the episodes by source shard: a data file of v3.0, a chunk of files of v2.

    `task_texts` holds the text of each task number.
    """

    folder: str
    name: str
    info: LeRobotInfo
    task_texts: Mapping[int, str]
    groups: Mapping[str, tuple[EpisodeEntry, ...]]

    @property
    def version(self) -> str:
        return self.info.version

    @property
    def control_hz(self) -> float:
        """Steps a second."""
        return self.info.fps

    @property
    def own_spec(self) -> None:
        """The format does not say what its fields mean."""

    @property
    def step_paths(self) -> tuple[str, ...]:
        own = (TASK, *(("reward",) if REWARD in self.info.features else ()))
        return tuple(dict.fromkeys((*self.info.features, *own)))

    @property
    def episode_paths(self) -> tuple[str, ...]:
        """A LeRobot episode has no fields of its own."""
        return ()

    def feature(self, path: str) -> Feature:
        """The feature of a step path. Raises KeyError for one that is not there."""
        if path == TASK:
            return Feature(key=_STEPS + TASK, kind="text", shape=(), dtype="string", outer=(None,))
        return self.info.features[self._column(path)]

    def split_slice(self, split: str) -> SplitSlice:
        """What "train", "train[:10]" or "train[90%:]" comes to, in episodes of the split."""
        counts = {name: stop - first for name, (first, stop) in self.info.splits.items()}
        return sliced(split, counts, self.folder, declared_in=INFO)

    def shards(self, split: str) -> tuple[SourceShard, ...]:
        """The groups that hold episodes of `split`. Raises ValueError as `split_slice` does, FileNotFoundError naming
        a data file that is missing."""
        part = self.split_slice(split)
        begin = self.info.splits[part.split][0]
        first, stop = begin + part.first, begin + part.stop
        weights = _Weights(self)
        shards = []
        before = 0
        for name, entries in self.groups.items():
            a, b = max(first - before, 0), min(stop - before, len(entries))
            before += len(entries)
            if a < b:
                shards.append(
                    SourceShard(
                        path=f"{self.folder}/{name}",
                        name=name,
                        num_records=len(entries),
                        num_bytes=weights.of(entries),
                        first=a,
                        stop=None if b == len(entries) else b,
                    )
                )
        return tuple(shards)

    def read_shard(
        self,
        shard: SourceShard,
        *,
        paths: Collection[str] | None = None,
        optional: Collection[str] = (),
        check_crc: bool = True,
    ) -> Iterator[Episode | Corrupt]:
        """Every episode of a shard, streaming; `paths` limits what is decoded. Parquet has no CRC to check here."""
        del check_crc
        if paths is None:
            paths = [path for path in self.step_paths if not self.feature(path).refusal]
        wanted = tuple(dict.fromkeys((*paths, *optional)))
        entries = self.groups[shard.name][shard.first : shard.stop]
        for file, run in _by_file(entries):
            checked = [name for name in (_FRAME, _TIME) if name in self.info.features]
            rows = Rows(f"{self.folder}/{file}", run, self._columns(wanted), optional=checked)
            for entry, content in rows:
                yield self._episode(shard, entry, content, wanted)

    def _column(self, path: str) -> str:
        return REWARD if path == "reward" and "reward" not in self.info.features else path

    def _columns(self, paths: Sequence[str]) -> list[str]:
        """The Parquet columns behind step paths; videos are in none."""
        columns = [_TIME if self.feature(path).codec else self._column(path) for path in paths if path != TASK]
        return list(dict.fromkeys([*columns, "task_index"]))

    def _episode(
        self, shard: SourceShard, entry: EpisodeEntry, content: EpisodeRows | str, paths: Sequence[str]
    ) -> Episode | Corrupt:
        if isinstance(content, str):
            return Corrupt(shard=shard.name, record=entry.index, offset=0, reason=content)
        try:
            if entry.length < 1:
                raise ValueError("the episode has no steps")
            _require_every_frame(content.table, self.info.fps)
            steps = {path: self._values(entry, content.table, path) for path in paths}
        except ValueError as error:
            reason = " ".join(str(error).split())
            return Corrupt(shard=shard.name, record=entry.index, offset=content.first_row, reason=reason)
        return Episode(
            shard=shard.name,
            record=entry.index,
            offset=content.first_row,
            crc=fingerprint(steps),
            num_steps=entry.length,
            steps=steps,
            metadata={},
        )

    def _values(self, entry: EpisodeEntry, table: pa.Table, path: str) -> Column:
        if path == TASK:
            return self._texts(table)
        feature = self.feature(path)
        with naming(path):
            if feature.codec:
                span = entry.videos[path]
                times_s = span.start_s + one_number_a_step(_TIME, table[_TIME], "float64")
                _require_own_part(times_s, span, self.info.fps)
                return VideoFrames(url=f"{self.folder}/{span.file}", times_s=times_s, fps=self.info.fps)
            return column_values(feature, table[self._column(path)])

    def _texts(self, table: pa.Table) -> list[bytes]:
        numbers = one_number_a_step("task_index", table["task_index"], "int64")
        texts = {}
        for number in np.unique(numbers).tolist():
            if number not in self.task_texts:
                raise ValueError(f"task_index {number} is no task of meta/tasks, which has {len(self.task_texts)}")
            texts[number] = self.task_texts[number].encode()
        if len(texts) == 1:
            return [*texts.values()] * len(numbers)
        return [texts[number] for number in numbers.tolist()]


class _Weights:
    """Bytes of the data files and, by frames, of the videos behind episodes: what the work is, for dividing it."""

    def __init__(self, dataset: LeRobotDataset) -> None:
        self._folder = dataset.folder
        self._filesystem, self._root = open_folder(dataset.folder)
        self._listed: dict[str, dict[str, int]] = {}
        every = [entry for entries in dataset.groups.values() for entry in entries]
        self._frames_in_video = _frames_in_video(every)

    def of(self, entries: Sequence[EpisodeEntry]) -> int:
        """Raises FileNotFoundError for a data file that is not there; a video may be missing if nobody asks for it."""
        total = 0
        for file in {entry.data_file for entry in entries}:
            size = self._size(file)
            if size is None:
                raise FileNotFoundError(f"{self._folder} lacks {file}: download it, or ask another --split")
            total += size
        for file, frames in _frames_in_video(entries).items():
            total += (self._size(file) or 0) * frames // max(self._frames_in_video[file], 1)
        return total

    def _size(self, file: str) -> int | None:
        parent, _, name = file.rpartition("/")
        if parent not in self._listed:
            self._listed[parent] = self._listing(parent)
        return self._listed[parent].get(name)

    def _listing(self, parent: str) -> dict[str, int]:
        try:
            entries = self._filesystem.ls(f"{self._root}/{parent}", detail=True)
        except FileNotFoundError:
            return {}
        return {entry["name"].rpartition("/")[2]: int(entry["size"] or 0) for entry in entries}


def _frames_in_video(entries: Sequence[EpisodeEntry]) -> dict[str, int]:
    frames: dict[str, int] = defaultdict(int)
    for entry in entries:
        for span in entry.videos.values():
            frames[span.file] += entry.length
    return frames


def is_lerobot(filesystem: FileSystem, root: str) -> bool:
    """Whether a folder is a LeRobot dataset."""
    return filesystem.exists(f"{root}/{INFO}")


def open_lerobot(folder: str) -> LeRobotDataset:
    """Open a LeRobot folder, local or a URL. Raises ValueError naming the file that is not as LeRobot writes it."""
    folder = str(folder).rstrip("/")
    filesystem, root = open_folder(folder)
    info = read_info(filesystem, folder, root)
    entries = read_episodes(filesystem, folder, root, info)
    if [entry.index for entry in entries] != list(range(len(entries))):
        raise ValueError(f"{folder}/meta lists other episodes than 0 to {len(entries) - 1}: download it again")
    return LeRobotDataset(
        folder=folder,
        name=folder_name(root.rstrip("/").rpartition("/")[2]),
        info=info,
        task_texts=read_tasks(filesystem, folder, root, info),
        groups=_groups(entries, info),
    )


def _require_every_frame(table: pa.Table, fps: float) -> None:
    """Raise ValueError unless an episode's frames are all there, in order, and about as fast as the dataset records.

    A recording that halted for a moment passes: the timestamps as a whole count. A column that is not there is not
    looked at.
    """
    if _FRAME in table.column_names:
        frames = one_number_a_step(_FRAME, table[_FRAME], "int64")
        if frames[0] != 0:
            raise ValueError(f"{_FRAME} begins with {frames[0]}, and an episode's first frame is 0: frames are missing")
        if len(wrong := np.flatnonzero(np.diff(frames) != 1)):
            before, after = frames[wrong[0] : wrong[0] + 2]
            raise ValueError(
                f"{_FRAME} goes from {before} to {after} at step {wrong[0] + 1}: frames are missing or moved"
            )
    if _TIME in table.column_names and len(table) > 1:
        times_s = one_number_a_step(_TIME, table[_TIME], "float64")
        gaps_s = np.diff(times_s)
        if len(wrong := np.flatnonzero(~(gaps_s > 0))):
            before, after = times_s[wrong[0] : wrong[0] + 2]
            raise ValueError(
                f"{_TIME} goes from {before:.4f} to {after:.4f} s at step {wrong[0] + 1}: it must increase"
            )
        if abs(np.median(gaps_s) * fps - 1) > _HALF_A_FRAME:
            raise ValueError(
                f"{_TIME} goes on by {np.median(gaps_s):.4f} s a step (the median), and {fps:g} frames a second are "
                f"declared"
            )


def _require_own_part(times_s: np.ndarray, span: VideoSpan, fps: float) -> None:
    """Raise ValueError if times lie outside an episode's part of a video, where other episodes' frames are."""
    slack_s = _HALF_A_FRAME / fps
    if len(outside := np.flatnonzero(~((times_s > span.start_s - slack_s) & (times_s < span.stop_s - slack_s)))):
        raise ValueError(
            f"{_TIME} leads to {times_s[outside[0]]:.4f} s of {span.file} at step {outside[0]}, and the episode lies "
            f"there from {span.start_s:.4f} to {span.stop_s:.4f} s"
        )


def _groups(entries: Sequence[EpisodeEntry], info: LeRobotInfo) -> dict[str, tuple[EpisodeEntry, ...]]:
    """Consecutive episodes by data file, or of v2, which has a file an episode, by chunk of files."""

    def name_of(entry: EpisodeEntry) -> str:
        return entry.data_file if info.version.startswith("v3.") else entry.data_file.rpartition("/")[0]

    runs = [(name, tuple(run)) for name, run in groupby(entries, key=name_of)]
    groups = dict(runs)
    if len(groups) != len(runs):
        raise ValueError("the episodes of a data file are not numbered consecutively: write the dataset again")
    return groups


def _by_file(entries: Sequence[EpisodeEntry]) -> Iterator[tuple[str, list[EpisodeEntry]]]:
    for file, run in groupby(entries, key=lambda entry: entry.data_file):
        yield file, list(run)
