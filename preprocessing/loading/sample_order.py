"""The global order of training samples: a pure function of (number of samples, seed, epoch). No I/O, no state.

A sample is one window, named by the step row at which it ends. The order is woven from L lanes: sample i of the run
comes from lane i mod L, and each lane streams its own share of the shuffled blocks (runs of neighbouring rows, so that
reads stay local). The world size never enters: with W ranks, W dividing L, rank r takes the samples congruent to r mod
W, which are exactly the lanes congruent to r mod W. Hence a run can be continued on another number of ranks from one
integer, the number of samples consumed.

A lane interleaves several blocks at a time: each is walked from its start to its end, in locally shuffled order, all of
them spread evenly over the same stretch. The windows of a batch then come from as many blocks as are open (lanes x
interleaved blocks), while windows that share frames follow each other soon enough for a frame to be decoded once and
forgotten after a few hundred samples. A row-by-row shuffle of the same blocks would keep every frame of every open
block in memory, or decode it once per window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

BLOCK_ROWS = 128
"""Rows of a block where the store is large enough: as many as a row group of an episode store has."""
_JITTER_ROWS = 2.0  # how far a row is moved within its block, at most
_MOST_BLOCKS = 2**20  # beyond some 10^8 rows blocks grow instead of becoming more: 16 MB an epoch
_BLOCKS, _INTERLEAVING = 0, 1  # purposes that keep the random streams of one (seed, epoch) apart


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleOrder:
    """The order of `num_samples` rows per epoch, epoch after epoch.

    `block_rows` neighbouring rows, fewer in a store that would not give each lane `interleaved_blocks` of them, travel
    together through the block shuffle; `block_starts` int64 are rows at which a block must begin (where reading is
    cheap). Memory: two int64 per block and one per interleaved row, never one per sample.
    """

    num_samples: int
    seed: int
    lanes: int = 48
    block_rows: int = BLOCK_ROWS
    interleaved_blocks: int = 4
    block_starts: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64), repr=False)
    _bounds: np.ndarray = field(init=False, repr=False)
    _epoch_blocks: Callable[[int], tuple[np.ndarray, np.ndarray]] = field(init=False, repr=False)
    _braid: Callable[..., np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("num_samples", "lanes", "block_rows", "interleaved_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"sample order: {name} must be at least 1, got {getattr(self, name)}")
        rows = min(self.block_rows, max(self.num_samples // (self.lanes * self.interleaved_blocks), 1))
        rows = max(rows, -(-self.num_samples // _MOST_BLOCKS))
        put = object.__setattr__  # the dataclass is frozen
        put(self, "_bounds", _block_bounds(self.block_starts, self.num_samples, rows))
        put(self, "_epoch_blocks", lru_cache(maxsize=2)(self._shuffled_blocks))
        put(self, "_braid", lru_cache(maxsize=4 * self.lanes)(self._interleaved_rows))

    def rows(self, first: int, count: int, *, rank: int = 0, world_size: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(sample ids, rows), int64, of the rank's part of the run's samples [first, first + count)."""
        self.require_world_size(world_size)
        ids = np.arange(first, first + count, dtype=np.int64)
        ids = ids[ids % world_size == rank]
        return ids, self.rows_of(ids)

    def rows_of(self, sample_ids: np.ndarray) -> np.ndarray:
        """int64: the rows that are these samples of the run, in any order."""
        rows, epochs = np.empty(len(sample_ids), np.int64), sample_ids // self.num_samples
        for epoch in np.unique(epochs).tolist():
            rows[epochs == epoch] = self._rows_in_epoch(epoch, sample_ids[epochs == epoch])
        return rows

    @property
    def fills_lanes(self) -> bool:
        """Whether every lane has a block of its own in each epoch."""
        return self.num_samples >= self.lanes * self.block_rows

    def require_world_size(self, world_size: int) -> None:
        """Raise ValueError unless the ranks can share the lanes evenly."""
        if self.lanes % world_size:
            fits = [w for w in range(1, self.lanes + 1) if self.lanes % w == 0]
            raise ValueError(
                f"{world_size} workers cannot share {self.lanes} lanes evenly: use one of {fits} workers, "
                f"or start a new run with another number of lanes"
            )

    def _rows_in_epoch(self, epoch: int, sample_ids: np.ndarray) -> np.ndarray:
        first = (sample_ids - epoch * self.num_samples) % self.lanes  # of the lane in this epoch; it goes on every L
        share, extra = divmod(self.num_samples, self.lanes)
        start = first * share + np.minimum(first, extra)  # of the lane's stretch in the sequence of shuffled blocks
        stop = start + share + (first < extra)
        place = start + (sample_ids - epoch * self.num_samples - first) // self.lanes
        _, ends = self._epoch_blocks(epoch)
        first_block, block = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, place, side="right")
        group = first_block + (block - first_block) // self.interleaved_blocks * self.interleaved_blocks
        begins = np.maximum(np.where(group > 0, ends[group - 1], 0), start)
        stretches = zip(begins.tolist(), stop.tolist(), group.tolist(), (place - begins).tolist(), strict=True)
        return np.array([self._braid(epoch, *which)[inside] for *which, inside in stretches], np.int64)

    def _shuffled_blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(block numbers in this epoch's order, the place at which each ends)."""
        sizes = np.diff(self._bounds)
        blocks = np.random.default_rng((self.seed, epoch, _BLOCKS)).permutation(len(sizes))
        return blocks, np.cumsum(sizes[blocks])

    def _interleaved_rows(self, epoch: int, begins: int, stop: int, first_block: int) -> np.ndarray:
        """int64: the rows of `interleaved_blocks` blocks from `first_block` on that lie in [begins, stop)."""
        blocks, ends = self._epoch_blocks(epoch)
        last_block = min(first_block + self.interleaved_blocks, int(np.searchsorted(ends, stop, side="left")) + 1)
        random = np.random.default_rng((self.seed, epoch, _INTERLEAVING, begins))
        rows, turns = [], []
        for block, ends_at in zip(blocks[first_block:last_block], ends[first_block:last_block], strict=True):
            low, high = self._bounds[block : block + 2]
            begins_at = int(ends_at) - (high - low)
            kept = np.arange(low + max(begins - begins_at, 0), high - max(int(ends_at) - stop, 0))
            rows.append(kept)
            turns.append((np.arange(len(kept)) + _JITTER_ROWS * random.random(len(kept))) / len(kept))
        return np.concatenate(rows)[np.argsort(np.concatenate(turns), kind="stable")]


def _block_bounds(starts: np.ndarray, num_samples: int, block_rows: int) -> np.ndarray:
    """int64 (blocks + 1,): `starts` and the end, with stretches above `block_rows` cut into nearly equal parts."""
    starts = starts[:: len(starts) // _MOST_BLOCKS + 1]
    bounds = np.unique(np.concatenate([[0], starts[(starts > 0) & (starts < num_samples)], [num_samples]]))
    sizes = np.diff(bounds)
    parts = -(-sizes // block_rows)
    stretch = np.repeat(np.arange(len(sizes)), parts)
    part = np.arange(len(stretch)) - np.repeat(np.cumsum(parts) - parts, parts)
    cuts = bounds[stretch] + sizes[stretch] * part // parts[stretch]
    return np.concatenate([cuts, [num_samples]]).astype(np.int64)
