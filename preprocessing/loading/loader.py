"""The rank's batches of a run: sample order and position in, what a reader makes of the rows out, some batches ahead.

The loader knows nothing of Ray, of the model or of the number of ranks' history: a position is the count of samples
consumed. A reader (`reader.Reader`) turns rows into tensors; `WindowReader` is RT-1's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise

import numpy as np
import torch

from preprocessing.loading.fixed_shapes import BatchShapes
from preprocessing.loading.mixture_order import MixtureOrder
from preprocessing.loading.reader import Batch, LoaderConfig, Reader
from preprocessing.loading.sample_order import SampleOrder
from preprocessing.loading.shuffle_score import shuffle_score
from preprocessing.loading.window_reader import WindowReader
from preprocessing.loading.windows import PADDING

__all__ = ["Batch", "Loader", "LoaderConfig", "Reader", "WindowReader"]

_LEAST_INTERLEAVED = 3  # blocks interleaved in a lane: with 48 lanes 144 streams, above two batches of 64 windows
_SCORED = 4096  # samples that the shuffle score is taken over
_REPEATED = 4  # micro-batches that the modes without reading hand out over and over


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """The rank's samples of one global batch: ids, global rows and crop keys, int64 (N,)."""

    ids: np.ndarray
    rows: np.ndarray
    crop_keys: np.ndarray

    def taken(self, places: np.ndarray | slice) -> _Samples:
        return _Samples(ids=self.ids[places], rows=self.rows[places], crop_keys=self.crop_keys[places])


class Loader:
    """The rank's micro-batches of the run, without end, beginning after `position` windows.

    Each global batch is the next `global_batch` windows of the order; the rank's part of it is handed out in
    `micro_batch`-sized pieces. `state()` is the position after the last piece handed out that closed a global batch.

    `weights` is the share of samples of each of the reader's stores, of any scale; stores then run through epochs of
    their own. Without weights all rows of all stores are one epoch. With `segment_windows` > 1 the order is one of
    segments of so many neighbouring windows, which share frames and one crop, so that each frame can be encoded once.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        seed: int,
        lanes: int,
        global_batch: int,
        micro_batch: int,
        weights: Sequence[float] | None = None,
        segment_windows: int = 1,
        rank: int = 0,
        world_size: int = 1,
        position: int = 0,
        pin_memory: bool = False,
    ) -> None:
        counts = {"lanes": lanes, "global_batch": global_batch, "micro_batch": micro_batch}
        _require_least(1, **counts, segment_windows=segment_windows, world_size=world_size)
        _require_least(0, seed=seed, position=position, rank=rank)
        if rank >= world_size:
            raise ValueError(f"loader: rank {rank} is out of range for {world_size} workers (0..{world_size - 1})")
        if global_batch % (micro_batch * world_size) or micro_batch % segment_windows:
            raise ValueError(
                f"global batch {global_batch} must be a multiple of micro-batch {micro_batch} x {world_size} workers, "
                f"and the micro-batch of {segment_windows} windows a segment"
            )
        if weights is not None and len(weights) != len(reader.store_rows):
            raise ValueError(f"{len(weights)} weights for {len(reader.store_rows)} stores: give one per store")
        if pin_memory and reader.config.frames == "pool":
            raise ValueError("loader.frames pool would be copied to the GPU whole with each batch: use distinct")
        self._reader, self._segment_windows = reader, segment_windows
        self._global_batch, self._micro_batch = global_batch, micro_batch
        self._rank, self._world_size = rank, world_size
        self._position, self._pin_memory = position, pin_memory
        self._sources = None if weights is None else MixtureOrder(weights, lanes)
        self._first_row = np.array([0, *accumulate(reader.store_rows)])
        epochs = self._first_row[[0, -1]] if weights is None else self._first_row  # rows between which an epoch runs
        self._orders = [self._order(int(a), int(b - a), seed, lanes) for a, b in pairwise(epochs)]
        self._orders[0].require_world_size(world_size)
        self._drawn = np.zeros(len(reader.store_rows), np.int64)
        self._recent: deque[np.ndarray] = deque(maxlen=-(-_SCORED // micro_batch))
        self.waited_s = 0.0
        self.shapes: BatchShapes | None = None
        """Set before batches are asked for: the few shapes that they shall have."""

    def first_samples(self, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(rows, crop keys) of this rank's first `count` micro-batches of the whole run, wherever it stands now."""
        return [(samples.rows, samples.crop_keys) for samples, _ in islice(self._pieces(0), count)]

    def state(self) -> dict[str, int]:
        """The position: how many windows of the run have been handed out, over all ranks."""
        return {"sample": self._position}

    def report(self) -> dict[str, float]:
        """Of this rank since the loader was made: seconds waited, how well shuffled, samples and epochs of each store.

        `shuffle_score`: median distance between successive samples of one episode, over what a full shuffle of the
        same samples gives (1 is as good); left out until two samples of one episode have come.
        """
        report = {"waited_s": self.waited_s, "samples": float(self._drawn.sum())}
        if self._recent and (score := shuffle_score(np.concatenate(self._recent))) is not None:
            report["shuffle_score"] = score
        rows_of_store = self._reader.store_rows
        for name, drawn, rows in zip(self._reader.datasets, self._drawn, rows_of_store, strict=True):
            report[f"share/{name}"] = float(drawn / max(self._drawn.sum(), 1))
            report[f"epochs/{name}"] = float(drawn * self._world_size / rows)
        return report

    def __iter__(self) -> Iterator[Batch]:
        pieces = self._pieces(self._position)
        if self._reader.config.mode != "read":
            yield from self._repeated(pieces)
            return
        threads = self._reader.concurrent_reads
        depth = self._reader.config.prefetch_batches + threads
        planner, pool = ThreadPoolExecutor(1), ThreadPoolExecutor(threads, thread_name_prefix="loader")

        def plan() -> tuple[Future[Batch], int]:
            samples, position = next(pieces)
            return pool.submit(self._read, samples), position

        ahead: deque[Future[tuple[Future[Batch], int]]] = deque()
        try:
            while True:
                ahead.extend(planner.submit(plan) for _ in range(depth - len(ahead)))
                began = time.perf_counter()
                read, position = ahead.popleft().result()
                batch = read.result()
                self.waited_s += time.perf_counter() - began
                yield self._handed_out(batch, position)
        finally:
            planner.shutdown(cancel_futures=True)
            pool.shutdown(cancel_futures=True)

    def _repeated(self, pieces: Iterator[tuple[_Samples, int]]) -> Iterator[Batch]:
        """Batches without reading: the first few over and over, under `mode` synthetic with noise for frames."""
        batches = []
        for number, (samples, position) in enumerate(pieces):
            if len(batches) < _REPEATED:
                batch = self._read(samples)
                if self._reader.config.mode == "synthetic":
                    for key in [key for key in batch if key.startswith("frames")]:
                        batch[key] = torch.randint_like(batch[key], 256)
                batches.append(batch)
            yield self._handed_out(batches[number % _REPEATED], position)

    def _handed_out(self, batch: Batch, position: int) -> Batch:
        self._position = position
        self._drawn += np.bincount(batch["store"].numpy(), minlength=len(self._drawn))
        if "episode" in batch:
            self._recent.append(np.stack([batch["store"].numpy(), batch["episode"].numpy()], axis=1))
        return batch

    def _read(self, samples: _Samples) -> Batch:
        arrays = (samples.ids, samples.rows, samples.crop_keys)
        batch = self._reader.read(*arrays) if self.shapes is None else self.shapes.read(*arrays)
        return {key: value.pin_memory() for key, value in batch.items()} if self._pin_memory else batch

    def _pieces(self, position: int) -> Iterator[tuple[_Samples, int]]:
        """(samples of a micro-batch, position once it is handed out), without end."""
        while True:
            samples = self._samples(position)
            cost_N = self._reader.cost(samples.rows)
            if cost_N is not None:
                samples = samples.taken(np.argsort(cost_N, kind="stable"))
            for first in range(0, len(samples.ids), self._micro_batch):
                closes = first + self._micro_batch == len(samples.ids)
                yield samples.taken(slice(first, first + self._micro_batch)), position + self._global_batch * closes
            position += self._global_batch

    def _samples(self, position: int) -> _Samples:
        """The rank's windows of one global batch: its segments, window by window.

        A segment is `segment_windows` neighbouring rows; the last one may reach beyond the end, where there is padding
        instead, so that an epoch still trains on every window once.
        """
        size = self._segment_windows
        ids, stores, segments = self._segments(position // size, self._global_batch // size)
        inside = np.arange(size)
        local = segments[:, None] * size + inside
        ends = self._first_row[1:][stores] if self._sources is not None else self._first_row[-1:].repeat(len(ids))
        rows = local + (self._first_row[stores][:, None] if self._sources is not None else 0)
        rows = np.where(rows < ends[:, None], rows, PADDING).ravel()
        return _Samples(ids=(ids[:, None] * size + inside).ravel(), rows=rows, crop_keys=np.repeat(ids * size, size))

    def _segments(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(segment ids, their stores, segments), int64, of the rank's part of segments [first, first + count)."""
        if self._sources is None:
            ids, segments = self._orders[0].rows(first, count, rank=self._rank, world_size=self._world_size)
            return ids, np.zeros(len(ids), np.int64), segments
        turns = self._sources.take(first, count)
        mine = np.flatnonzero(turns.lanes % self._world_size == self._rank)
        segments = np.empty(count, np.int64)
        for store in np.unique(turns.stores[mine]):
            order, its = self._orders[store], mine[turns.stores[mine] == store]
            # Lanes keep the ranks' reads apart. A store too small for that is read by all, in exact epochs.
            in_lanes = turns.in_lane[its] * order.lanes + turns.lanes[its]
            segments[its] = order.rows_of(in_lanes if order.fills_lanes else turns.in_store[its])
        return first + mine, turns.stores[mine], segments[mine]

    def _order(self, first_row: int, rows: int, seed: int, lanes: int) -> SampleOrder:
        size = self._segment_windows
        starts = self._reader.block_starts
        own = starts[(starts >= first_row) & (starts < first_row + rows)] - first_row
        return SampleOrder(
            num_samples=-(-rows // size),
            seed=seed,
            lanes=lanes,
            block_rows=max(128 // size, 1),
            interleaved_blocks=max(_LEAST_INTERLEAVED, -(-2 * self._global_batch // (size * lanes))),
            block_starts=np.unique(own // size),
        )


def _require_least(least: int, **settings: int) -> None:
    for name, value in settings.items():
        if value < least:
            raise ValueError(f"loader: {name} must be at least {least}, got {value}")
