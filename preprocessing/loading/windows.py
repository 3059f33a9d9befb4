"""Windows over episodes: which rows a window holds. Pure arithmetic on episode lengths.

A window of T steps, each `stride` after the one before, ends at its row and reaches back inside the same episode.
Before the episode's first step it is padded on the left, as the RT-1-X training data are, with T - 1 steps before every
episode (google-deepmind/open_x_embodiment 9eeb68b9 `colabs/Minimal_Training_Example.ipynb`, cell 15); padding is marked
and never trained on. So every step of every episode, the first and the last too, is the end of exactly one window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PADDING = -1


@dataclass(frozen=True, kw_only=True)
class StepIndex:
    """Where shards and episodes begin among the rows (steps) of a store, counted across its shards.

    `shard_starts` int64 (S + 1,) and `episode_starts` int64 (E + 1,), both ending with the number of rows.
    """

    shard_starts: np.ndarray
    episode_starts: np.ndarray

    @staticmethod
    def from_lengths(episode_lengths: Sequence[np.ndarray]) -> StepIndex:
        """From the episode lengths of each shard, in shard order."""
        rows = [int(lengths.sum()) for lengths in episode_lengths]
        lengths = np.concatenate([np.asarray(lengths, np.int64) for lengths in episode_lengths] or [np.empty(0)])
        return StepIndex(shard_starts=_starts(np.array(rows)), episode_starts=_starts(lengths))

    @property
    def num_rows(self) -> int:
        return int(self.shard_starts[-1])

    @property
    def num_episodes(self) -> int:
        return len(self.episode_starts) - 1

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shard, row within it) of each row, int64, same shape."""
        shards = np.searchsorted(self.shard_starts, rows, side="right") - 1
        return shards, rows - self.shard_starts[shards]

    def episodes(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(episode, step within it) of each row, int64, same shape."""
        episodes = np.searchsorted(self.episode_starts, rows, side="right") - 1
        return episodes, rows - self.episode_starts[episodes]


def window_rows(index: StepIndex, ends: np.ndarray, num_steps: int, stride: int = 1) -> np.ndarray:
    """int64 (B, T): the rows of the windows of `num_steps` that end at rows `ends` (B,); PADDING before the episode."""
    rows_BT = ends[:, None] + stride * np.arange(1 - num_steps, 1)
    _, step_B = index.episodes(ends)
    return np.where(rows_BT >= (ends - step_B)[:, None], rows_BT, PADDING)


def most_images(
    num_rows: int, segment_rows: int, *, num_steps: int, stride: int = 1, cameras: int = 1, shared: bool = True
) -> int:
    """Above which no batch of `num_rows` windows, in segments of neighbouring ones, has images: the windows of a
    segment share all frames but those that its first one reaches back to. Where they are not `shared`, none."""
    if not shared:
        return cameras * num_rows * num_steps
    of_segment = min(segment_rows + (num_steps - 1) * stride, segment_rows * num_steps)
    return cameras * (num_rows // segment_rows * of_segment)


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
