"""Batches of few shapes: what varies from batch to batch is padded to one of three capacities, fixed before the run.

A CUDA graph can be replayed only for shapes that it was recorded with; with compute.depthwise cudnn each new number of
images also costs seconds. What varies is the reader's affair (`SizedReader.size`): of windows it is the images, of
prompts the tokens of the longest row. It is known from a micro-batch's rows, before they are read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import numpy as np

from preprocessing.loading.reader import Batch, Reader


class SizedReader(Protocol):
    """A reader whose batches can be padded to a capacity. `counts`: what a size is a number of, in a sentence.
    `counted`: how many micro-batches of each rank, from the first of the run, capacities are chosen from."""

    counts: str
    counted: int

    def size(self, rows: np.ndarray, crop_keys: np.ndarray, *, crops: bool) -> int:
        """Of the batch of `rows` (B,): what differs from batch to batch and sets the shapes that its model computes.

        crops: whether frames are cropped by crop key, so that one frame under two crops is two images.
        """
        ...

    def largest_size(self, num_rows: int, segment_rows: int) -> int:
        """Above which no batch of `num_rows` rows, in segments of neighbouring ones, comes."""
        ...

    def read(
        self,
        sample_ids: np.ndarray,
        rows: np.ndarray,
        crop_keys: np.ndarray | None = None,
        *,
        capacity: int | None = None,
    ) -> Batch:
        """As `Reader.read`. With a capacity, at least the batch's size, its shapes depend on that and on B alone."""
        ...


def is_sized(reader: Reader) -> TypeGuard[SizedReader]:
    """Whether batches of this reader can be padded; one that changes `read` must take its capacity too."""
    return hasattr(reader, "size") and "capacity" in inspect.signature(reader.read).parameters


@dataclass(frozen=True, kw_only=True)
class Capacities:
    """`sizes` ascend; the last holds whatever may come. `sizes_seen`, ascending: what they were chosen from."""

    sizes: tuple[int, ...]
    sizes_seen: tuple[int, ...]

    def holding(self, size: int) -> int:
        """The smallest that holds `size`. Raises ValueError if none does."""
        for capacity in self.sizes:
            if size <= capacity:
                return capacity
        raise ValueError(f"a batch has size {size}, and the largest capacity is {self.sizes[-1]}")

    @property
    def waste(self) -> float:
        """Share of what the sizes seen are padded to that is padding."""
        return 1 - sum(self.sizes_seen) / sum(self.holding(size) for size in self.sizes_seen)


def choose_capacities(sizes: Sequence[int], largest: int) -> Capacities:
    """`largest` and up to two of `sizes`, those that leave the least padding; equally good ones: the smaller.

    Raises ValueError if a size is above `largest`.
    """
    seen = np.sort(np.asarray(sizes, np.int64))
    if len(seen) and seen[-1] > largest:
        raise ValueError(f"a batch has size {seen[-1]}, and the largest capacity is {largest}")
    candidates = np.unique(seen[seen < largest])
    ends = np.searchsorted(seen, candidates, side="right")  # how many of those seen each candidate holds
    best: tuple[int, tuple[int, ...]] = (largest * len(seen), (largest,))
    for place, middle in enumerate(candidates.tolist()):
        rest = largest * (len(seen) - int(ends[place]))
        below = candidates[: place + 1] * ends[: place + 1] + middle * (ends[place] - ends[: place + 1])
        low = int(below.argmin())
        places = int(below[low]) + rest
        if places < best[0]:
            best = places, tuple(sorted({int(candidates[low]), middle, largest}))
    return Capacities(sizes=best[1], sizes_seen=tuple(seen.tolist()))


@dataclass(frozen=True, kw_only=True)
class BatchShapes:
    """How the batches of `reader` get one of few shapes. `crops`: whether images are cropped by crop key.

    `plan`: given a batch that was read for this capacity, the batch with what else its model needs to compute it.
    """

    reader: SizedReader
    capacities: Capacities
    crops: bool
    plan: Callable[[Batch, int], Batch]

    def read(self, sample_ids: np.ndarray, rows: np.ndarray, crop_keys: np.ndarray) -> Batch:
        capacity = self.capacities.holding(self.reader.size(rows, crop_keys, crops=self.crops))
        return self.plan(self.reader.read(sample_ids, rows, crop_keys, capacity=capacity), capacity)

    def read_filled(self, rows: np.ndarray, num_rows: int) -> Batch:
        """The batch of `rows` (B,), without crops. The number of rows is a shape too: the last one is repeated up to
        `num_rows`, and the caller leaves the repetitions out."""
        filled = np.pad(rows, (0, num_rows - len(rows)), mode="edge")
        return self.read(filled, filled, filled)


def shapes_of_pieces(
    reader: SizedReader, pieces: Sequence[np.ndarray], plan: Callable[[Batch, int], Batch]
) -> BatchShapes:
    """The few shapes of the batches of these rows, (B,) each, without crops; all are read with as many rows as the
    first. `plan` as of `BatchShapes`."""
    sizes = [reader.size(rows, rows, crops=False) for rows in pieces]
    capacities = choose_capacities(sizes, reader.largest_size(len(pieces[0]), 1))
    return BatchShapes(reader=reader, capacities=capacities, crops=False, plan=plan)
