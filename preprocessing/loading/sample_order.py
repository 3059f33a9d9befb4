"""The global order of training samples: a pure function of (number of samples, seed, epoch). No I/O, no state.

A sample is one window, named by the step row at which it ends. The order is woven from L lanes: sample i of the run
comes from lane i mod L, and each lane streams its own share of the shuffled blocks (runs of neighbouring rows, so that
reads stay local), with the rows of several blocks mixed inside. The world size never enters: with W ranks, W dividing
L, rank r takes the samples congruent to r mod W, which are exactly the lanes congruent to r mod W. Hence a run can be
continued on another number of ranks from one integer, the number of samples consumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_BLOCKS, _MIX = 0, 1  # purposes that keep the random streams of one (seed, epoch) apart


@dataclass(frozen=True, kw_only=True)
class SampleOrder:
    """The order of `num_samples` rows per epoch, epoch after epoch.

    `block_rows` neighbouring rows travel together through the block shuffle; `mixed_blocks` blocks of a lane are
    shuffled row by row. Memory: one int64 per block and per mixed row, never one per sample.
    """

    num_samples: int
    seed: int
    lanes: int = 48
    block_rows: int = 16
    mixed_blocks: int = 32

    def __post_init__(self) -> None:
        for name in ("num_samples", "lanes", "block_rows", "mixed_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"sample order: {name} must be at least 1, got {getattr(self, name)}")

    def rows(self, first: int, count: int, *, rank: int = 0, world_size: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(sample ids, rows), int64, of the rank's part of the run's samples [first, first + count)."""
        self.require_world_size(world_size)
        ids = np.arange(first, first + count, dtype=np.int64)
        ids = ids[ids % world_size == rank]
        return ids, np.array([self.row(int(i)) for i in ids], np.int64)

    def row(self, sample_id: int) -> int:
        """The row that is sample `sample_id` of the run."""
        epoch, place = divmod(sample_id, self.num_samples)
        lane = sample_id % self.lanes
        first = self._first_place(lane, epoch)  # of the lane in this epoch; its places follow every L samples
        start, size = self._lane_span(lane, epoch)
        return self._shuffled_row(epoch, start, size, (place - first) // self.lanes)

    def require_world_size(self, world_size: int) -> None:
        """Raise ValueError unless the ranks can share the lanes evenly."""
        if self.lanes % world_size:
            fits = [w for w in range(1, self.lanes + 1) if self.lanes % w == 0]
            raise ValueError(
                f"{world_size} workers cannot share {self.lanes} lanes evenly: use one of {fits} workers, "
                f"or start a new run with another number of lanes"
            )

    def _first_place(self, lane: int, epoch: int) -> int:
        return (lane - epoch * self.num_samples) % self.lanes

    def _lane_span(self, lane: int, epoch: int) -> tuple[int, int]:
        """(start, size) of the lane's stretch in the epoch's sequence of shuffled blocks."""
        place = self._first_place(lane, epoch)
        share, extra = divmod(self.num_samples, self.lanes)
        return place * share + min(place, extra), share + (place < extra)

    def _shuffled_row(self, epoch: int, start: int, size: int, offset: int) -> int:
        """The row at `offset` of a lane, after mixing the rows of `mixed_blocks` blocks."""
        mixed = self.block_rows * self.mixed_blocks
        group, inside = divmod(offset, mixed)
        length = min(mixed, size - group * mixed)
        place = start + group * mixed
        return self._row_of_place(epoch, place + int(_permutation((self.seed, epoch, _MIX, place), length)[inside]))

    def _row_of_place(self, epoch: int, place: int) -> int:
        """The row at `place` of the epoch's sequence of shuffled blocks; only the last block of a store is shorter."""
        num_blocks = -(-self.num_samples // self.block_rows)
        blocks, short_at = _blocks((self.seed, epoch, _BLOCKS), num_blocks)
        shortfall = num_blocks * self.block_rows - self.num_samples
        if place >= (short_at + 1) * self.block_rows - shortfall:
            place += shortfall
        block, inside = divmod(place, self.block_rows)
        return int(blocks[block]) * self.block_rows + inside


@lru_cache(maxsize=256)
def _permutation(key: tuple[int, ...], length: int) -> np.ndarray:
    return np.random.default_rng(key).permutation(length)


@lru_cache(maxsize=2)
def _blocks(key: tuple[int, ...], num_blocks: int) -> tuple[np.ndarray, int]:
    """(shuffled block numbers, where the store's last block has landed)."""
    blocks = np.random.default_rng(key).permutation(num_blocks)
    return blocks, int(np.argmax(blocks == num_blocks - 1))
