"""Batches of windows from episode stores: order and position in, tensors of `rt_models.spec.BATCH` out.

`WindowReader` turns rows into a batch: it reads only the row groups and columns needed, decodes each distinct frame
once, and keeps what it read within one memory budget. `Loader` walks a `SampleOrder` with it, one batch ahead of the
training step. Neither knows anything of TensorFlow, of the model or of the number of ranks' history: a position is the
count of samples consumed.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Full, Queue
from typing import Any

import numpy as np
import torch

from preprocessing.episode_store import EpisodeStore
from preprocessing.images import decode_image
from preprocessing.loading.sample_order import SampleOrder
from preprocessing.loading.windows import PADDING, StepIndex, window_rows
from rt_models.spec import AffineTransform, merge_contracts

Batch = dict[str, torch.Tensor]

_COLUMNS = ("image", "action", "instruction", "is_terminal", "flags")


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How batches are read; nothing here but `mask_flags` changes what is trained on."""

    memory_mb: int = 512
    """Budget of one rank for encoded and decoded frames kept in memory, in megabytes."""
    decode_threads: int = 2
    """Threads that decode JPEG."""
    prefetch_batches: int = 2
    """Batches prepared ahead of the training step."""
    mask_flags: tuple[str, ...] = ()
    """Names of step flags of the store (such as first_zero_action) whose steps are not trained on."""

    def __post_init__(self) -> None:
        for name in ("memory_mb", "decode_threads", "prefetch_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"loader: {name} must be at least 1, got {getattr(self, name)}")


class WindowReader:
    """Reads windows of `num_steps` from the stores of a mixture; rows count through the stores in their order.

    `transforms` (one per store) turn the store's physical actions into model values.
    """

    def __init__(
        self,
        stores: Sequence[EpisodeStore],
        transforms: Sequence[AffineTransform],
        *,
        num_steps: int,
        config: LoaderConfig,
    ) -> None:
        merge_contracts([store.contract for store in stores])  # refuses stores that cannot be mixed
        self.config = config
        self.num_steps = num_steps
        self._stores, self._transforms = stores, transforms
        self._shards = [(number, shard) for number, store in enumerate(stores) for shard in range(len(store.shards))]
        self._flags = [_flag_bits(store, config.mask_flags) for store in stores]
        self._group_rows = np.array([stores[n].shards[s].row_group_rows for n, s in self._shards], np.int64)
        self.index = StepIndex.from_lengths([stores[n].shards[s].episode_lengths for n, s in self._shards])
        if self.index.num_rows == 0:
            raise ValueError(f"no steps to read in {', '.join(store.root for store in stores)}")
        episodes = [sum(len(shard.episode_lengths) for shard in store.shards) for store in stores]
        self._first_episode = np.concatenate([[0], np.cumsum(episodes)])
        self._groups = _Lru(config.memory_mb * 2**20 // 4)
        self._frames = _Lru(config.memory_mb * 2**20 * 3 // 4)
        self._pool = ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode")

    def read(self, sample_ids: np.ndarray, rows: np.ndarray, crop_keys: np.ndarray | None = None) -> Batch:
        """The batch of the windows that end at `rows` (B,), named `sample_ids` (B,); a row of -1 is all padding."""
        rows_BT = window_rows(self.index, rows, self.num_steps)
        distinct, inverse = np.unique(rows_BT, return_inverse=True)
        padded = int(distinct[0] == PADDING)
        steps = self._steps(distinct[padded:])
        index_BT = inverse.reshape(rows_BT.shape) - padded
        real_BT = index_BT >= 0
        shard_B, _ = self.index.locate(rows)
        store_B = np.array([self._shards[shard][0] for shard in shard_B])
        episode_B, step_B = self.index.episodes(rows)
        masks = np.array([store.contract.datasets[0].action_mask for store in self._stores])
        batch = {
            "frames": np.stack(steps["image"]),
            "frame_index": index_BT,
            "step_mask": real_BT,
            "loss_mask": real_BT & steps["trained"][index_BT],
            "embedding": np.where(real_BT[..., None], steps["embedding"][index_BT], np.float32(0)),
            "action": np.where(real_BT[..., None], steps["action"][index_BT], np.float32(0)),
            "action_mask": masks[store_B],
            "sample_id": sample_ids,
            "crop_key": sample_ids if crop_keys is None else crop_keys,
            "store": store_B,
            "episode": episode_B - self._first_episode[store_B],
            "step": step_B,
        }
        return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in batch.items()}

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _steps(self, rows: np.ndarray) -> dict[str, Any]:
        """Arrays over distinct rows (N,): decoded image list, model action (N, A), embedding (N, D), trained (N,)."""
        shards, inside = self.index.locate(rows)
        images: list[Any] = [None] * len(rows)
        parts: dict[str, list[np.ndarray]] = {"action": [], "embedding": [], "trained": []}
        groups = inside // self._group_rows[shards]
        _, starts = np.unique(np.stack([shards, groups]), axis=1, return_index=True)
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):  # rows are sorted: groups are runs
            shard, group = int(shards[start]), int(groups[start])
            loaded, places = self._row_group(shard, group), inside[start:stop] - group * self._group_rows[shard]
            for key, pieces in parts.items():
                pieces.append(loaded[key][places])
            for row, place in zip(range(start, stop), places, strict=True):
                key = (shard, group, int(place))
                images[row] = self._pool.submit(self._frame, key, loaded["image"][place])
        return {"image": [future.result() for future in images]} | {k: np.concatenate(v) for k, v in parts.items()}

    def _row_group(self, shard: int, group: int) -> dict[str, Any]:
        kept = self._groups.get((shard, group))
        if kept is not None:
            return kept
        number, store_shard = self._shards[shard]
        store = self._stores[number]
        table = store.read_rows(store_shard, group, list(_COLUMNS))
        physical = table["action"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        instruction = np.searchsorted(store.instruction_ids, table["instruction"].to_numpy())
        trained = ~table["is_terminal"].to_numpy() & ((table["flags"].to_numpy() & self._flags[number]) == 0)
        images = table["image"].to_pylist()
        loaded = {
            "action": self._transforms[number].apply(physical),
            "embedding": store.embeddings[instruction],
            "trained": trained,
            "image": images,
        }
        self._groups.put((shard, group), loaded, sum(map(len, images)))
        return loaded

    def _frame(self, key: tuple[int, int, int], encoded: bytes) -> np.ndarray:
        """The decoded frame, uint8 (H, W, 3)."""
        frame = self._frames.get(key)
        if frame is None:
            frame = decode_image(encoded)
            store = self._stores[self._shards[key[0]][0]]
            recipe = store.contract.image
            if frame.shape != (recipe.height, recipe.width, 3):
                raise ValueError(
                    f"a frame of {store.shards[self._shards[key[0]][1]].path} is {frame.shape[0]}x{frame.shape[1]}, "
                    f"its store says {recipe.height}x{recipe.width}: run rtp preprocess again with --image-size"
                )
            self._frames.put(key, frame, frame.nbytes)
        return frame


class Loader:
    """The rank's micro-batches of the run, without end, beginning after `position` windows.

    Each global batch is the next `global_batch` windows of the order; the rank's part of it is handed out in
    `micro_batch`-sized pieces. `state()` is the position after the last piece handed out that closed a global batch.
    With `segment_windows` > 1 the order is one of segments of so many neighbouring windows, which share frames and one
    crop, so that a model can encode each frame once.
    """

    def __init__(
        self,
        reader: WindowReader,
        *,
        seed: int,
        lanes: int,
        global_batch: int,
        micro_batch: int,
        segment_windows: int = 1,
        rank: int = 0,
        world_size: int = 1,
        position: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if global_batch % (micro_batch * world_size) or micro_batch % segment_windows:
            raise ValueError(
                f"global batch {global_batch} must be a multiple of micro-batch {micro_batch} x {world_size} workers, "
                f"and the micro-batch of {segment_windows} windows a segment"
            )
        num_segments = -(-reader.index.num_rows // segment_windows)
        self._order = SampleOrder(num_samples=num_segments, seed=seed, lanes=lanes)
        self._order.require_world_size(world_size)
        self._reader, self._segment_windows = reader, segment_windows
        self._global_batch, self._micro_batch = global_batch, micro_batch
        self._rank, self._world_size = rank, world_size
        self._position, self._pin_memory = position, pin_memory
        self.waited_s = 0.0

    def state(self) -> dict[str, int]:
        """The position: how many windows of the run have been handed out, over all ranks."""
        return {"sample": self._position}

    def __iter__(self) -> Iterator[Batch]:
        queue: Queue[Any] = Queue(self._reader.config.prefetch_batches)
        stop = threading.Event()
        thread = threading.Thread(target=self._produce, args=(queue, stop), daemon=True, name="loader")
        thread.start()
        try:
            while True:
                began = time.perf_counter()
                item = queue.get()
                self.waited_s += time.perf_counter() - began
                if isinstance(item, BaseException):
                    raise item
                batch, self._position = item
                yield batch
        finally:
            stop.set()
            thread.join()

    def _produce(self, queue: Queue[Any], stop: threading.Event) -> None:
        try:
            for item in self._micro_batches():
                if not _put(queue, item, stop):
                    return
        except Exception as error:  # handed to the training thread, which raises it
            _put(queue, error, stop)

    def _micro_batches(self) -> Iterator[tuple[Batch, int]]:
        position = self._position
        while True:
            samples = self._samples(position)
            for first in range(0, len(samples[0]), self._micro_batch):
                batch = self._reader.read(*(column[first : first + self._micro_batch] for column in samples))
                if self._pin_memory:
                    batch = {key: value.pin_memory() for key, value in batch.items()}
                closes = first + self._micro_batch == len(samples[0])
                yield batch, position + self._global_batch * closes
            position += self._global_batch

    def _samples(self, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(sample ids, rows, crop keys) of the rank's windows of one global batch: its segments, window by window.

        A segment is `segment_windows` neighbouring rows; the store's last one may reach beyond the end, where there is
        padding instead, so that an epoch still trains on every window once.
        """
        size = self._segment_windows
        ids, segments = self._order.rows(
            position // size, self._global_batch // size, rank=self._rank, world_size=self._world_size
        )
        inside = np.arange(size)
        rows = (segments[:, None] * size + inside).ravel()
        rows = np.where(rows < self._reader.index.num_rows, rows, PADDING)
        return (ids[:, None] * size + inside).ravel(), rows, np.repeat(ids * size, size)


def _flag_bits(store: EpisodeStore, names: Sequence[str]) -> int:
    known = list(store.manifest["flag_names"])
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{store.root} has no step flag {unknown[0]!r}: it has {', '.join(known) or 'none'}")
    return sum(1 << known.index(name) for name in names)


def _put(queue: Queue[Any], item: Any, stop: threading.Event) -> bool:
    """Put unless the consumer has left."""
    while not stop.is_set():
        try:
            queue.put(item, timeout=0.1)
            return True
        except Full:
            continue
    return False


class _Lru:
    """A thread-safe cache that forgets the least recently used entries beyond a number of bytes."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity, self._held = capacity_bytes, 0
        self._entries: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> Any:
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: Any, value: Any, num_bytes: int) -> None:
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = (value, num_bytes)
            self._held += num_bytes
            while self._held > self._capacity and len(self._entries) > 1:
                self._held -= self._entries.popitem(last=False)[1][1]
