"""Rows of episode stores in, batches of windows out: `rt_models.spec.BATCH`.

Reads only the row groups and columns needed, decodes each distinct frame once, straight to where it stays, and keeps
what it read within one memory budget. Knows nothing of order, of the model or of TensorFlow.

Axes: B windows, T steps, N distinct frames, A actions, D embedding.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import cachetools
import numpy as np
import pyarrow as pa
import torch

from preprocessing.loading.frame_cache import NO_SLOT, FrameBuffers, FrameCache, SlotReservation
from preprocessing.loading.reader import Batch, LoaderConfig, Reader
from preprocessing.loading.windows import PADDING, StepIndex, window_rows
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_into
from rt_models.spec import AffineTransform, merge_contracts

_COLUMNS = ("image", "action", "instruction", "is_terminal", "flags")
_PLANNED = 0.85  # of the budget; the rest is for what passes through: pages being read, narrow columns, the allocator
_ENCODED_PART = 0.5  # of the budget: encoded bytes are dearer to fetch again than frames are to decode again
_LOCKS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class _Group:
    """A row group with the rows before it that its first windows reach back to."""

    first_row: int
    images: pa.BinaryArray
    action: np.ndarray
    instruction: np.ndarray
    """int: place in the store's instruction table."""
    trained: np.ndarray


class WindowReader(Reader):
    """Reads windows of `num_steps` from the stores of a mixture; rows count through the stores in their order.

    `transforms` (one per store) turn the store's physical actions into model values. `decodes` and `fetches` count
    frames decoded and row groups read so far.
    """

    stores: Sequence[EpisodeStore]
    counts = "images"

    def __init__(
        self,
        stores: Sequence[EpisodeStore],
        transforms: Sequence[AffineTransform],
        *,
        num_steps: int,
        config: LoaderConfig,
    ) -> None:
        recipe = merge_contracts([store.contract for store in stores]).image  # refuses stores that cannot be mixed
        self.config, self.concurrent_reads, self.num_steps = config, config.decode_threads, num_steps
        self.stores, self._transforms = stores, transforms
        self._shards = [(number, shard) for number, store in enumerate(stores) for shard in range(len(store.shards))]
        self._flags = _flag_bits(stores, config.mask_flags)
        self._masks = np.array([store.dataset.action_mask for store in stores])
        self.index = StepIndex.from_lengths([stores[n].shards[s].episode_lengths for n, s in self._shards])
        if self.index.num_rows == 0:
            raise ValueError(f"no steps to read in {', '.join(store.root for store in stores)}")
        self.store_rows = [sum(int(shard.episode_lengths.sum()) for shard in store.shards) for store in stores]
        episodes = [store.num_episodes for store in stores]
        self._first_episode = np.concatenate([[0], np.cumsum(episodes)])
        self._block_starts, self._group_shard = self._row_groups()
        self._budget_bytes = int(config.memory_mb * 2**20 * _PLANNED)
        self._frame_bytes = recipe.height * recipe.width * 3
        slots = min(max(self._budget_bytes // self._frame_bytes, 1), self.index.num_rows)
        self._cache = FrameCache(slots, recipe.height, recipe.width)
        encoded_bytes = self._budget_bytes * _ENCODED_PART
        groups = cachetools.LRUCache[int, _Group](encoded_bytes, getsizeof=lambda group: group.images.nbytes)
        self._kept = cachetools.cached(groups, lock=threading.Lock())(self._fetched)
        self._buffers = FrameBuffers()
        self._lent: deque[int] = deque()
        self._counting = threading.Lock()
        self._fetching = [threading.Lock() for _ in range(_LOCKS)]
        self.decodes = self.fetches = 0

    def size(self, rows: np.ndarray, crop_keys: np.ndarray, *, crops: bool) -> int:
        """Images: distinct frames, with `crops` under each crop. Where frames are not shared (`config.frames` windows),
        every real step has its own."""
        rows_BT = window_rows(self.index, rows, self.num_steps)
        real_BT = rows_BT != PADDING
        if self.config.frames == "windows":
            return int(real_BT.sum())
        _, crop_B = np.unique(crop_keys, return_inverse=True)
        identity_BT = rows_BT + (self.index.num_rows * crop_B[:, None] if crops else 0)
        return len(np.unique(identity_BT[real_BT]))

    def largest_size(self, num_rows: int, segment_rows: int) -> int:
        """The windows of a segment share all frames but those that its first one reaches back to."""
        if self.config.frames == "windows":
            return num_rows * self.num_steps
        return num_rows // segment_rows * (segment_rows + self.num_steps - 1)

    def read(
        self,
        sample_ids: np.ndarray,
        rows: np.ndarray,
        crop_keys: np.ndarray | None = None,
        *,
        capacity: int | None = None,
    ) -> Batch:
        """The batch of the windows that end at `rows` (B,), named `sample_ids` (B,); a row of -1 is all padding.

        With a capacity there are so many frames, of which those beyond the distinct ones hold anything.
        """
        rows_BT = window_rows(self.index, rows, self.num_steps)
        distinct, first, inverse = np.unique(rows_BT, return_index=True, return_inverse=True)
        padded = int(distinct[0] == PADDING)
        owner_N = self._group_of(rows)[first[padded:] // self.num_steps]  # a window's rows all come with its last row's
        steps, frames, index_BT = self._steps(
            distinct[padded:], owner_N, inverse.reshape(rows_BT.shape) - padded, capacity
        )
        real_BT = rows_BT != PADDING
        place_BT = np.where(real_BT, inverse.reshape(rows_BT.shape) - padded, 0)
        shard_B, _ = self.index.locate(rows)
        store_B = np.array([self._shards[shard][0] for shard in shard_B])
        episode_B, step_B = self.index.episodes(rows)
        batch = {
            "frame_index": index_BT,
            "step_mask": real_BT,
            "loss_mask": real_BT & steps["trained"][place_BT],
            "embedding": np.where(real_BT[..., None], steps["embedding"][place_BT], np.float32(0)),
            "action": np.where(real_BT[..., None], steps["action"][place_BT], np.float32(0)),
            "action_mask": self._masks[store_B],
            "sample_id": sample_ids,
            "crop_key": sample_ids if crop_keys is None else crop_keys,
            "store": store_B,
            "episode": episode_B - self._first_episode[store_B],
            "step": step_B,
        }
        return {"frames": frames} | {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in batch.items()}

    @property
    def datasets(self) -> Sequence[str]:
        return [store.name for store in self.stores]

    @property
    def block_starts(self) -> np.ndarray:
        """int64 (G,): the first row of each row group."""
        return self._block_starts

    def close(self) -> None:
        """Give back what was kept."""
        self._kept.cache_clear()

    # --- rows -> steps ---

    def _steps(
        self, rows: np.ndarray, owners: np.ndarray, place_BT: np.ndarray, capacity: int | None
    ) -> tuple[dict[str, np.ndarray], torch.Tensor, np.ndarray]:
        """(arrays over distinct rows (N,): action, embedding, trained; frames; row of `frames` of each step (B, T))."""
        groups = {int(owner): self._group(int(owner)) for owner in np.unique(owners)}
        places = [(groups[owner], row) for owner, row in zip(owners.tolist(), rows.tolist(), strict=True)]
        frames, index_BT = self._frames(rows, [(g, row - g.first_row) for g, row in places], place_BT, capacity)
        order = np.argsort(owners, kind="stable")
        parts: dict[str, list[np.ndarray]] = {"action": [], "embedding": [], "trained": []}
        for owner, members in zip(np.unique(owners), _runs(order, owners[order]), strict=True):
            group, inside = groups[int(owner)], rows[members] - groups[int(owner)].first_row
            parts["action"].append(group.action[inside])
            parts["trained"].append(group.trained[inside])
            parts["embedding"].append(self._store_of(int(owner)).embeddings[group.instruction[inside]])
        undo = np.argsort(order, kind="stable")
        return {key: np.concatenate(pieces)[undo] for key, pieces in parts.items()}, frames, index_BT

    def _frames(
        self, rows: np.ndarray, encoded: list[tuple[_Group, int]], place_BT: np.ndarray, capacity: int | None
    ) -> tuple[torch.Tensor, np.ndarray]:
        """(frames uint8 (F, H, W, 3), row of them of each step (B, T) with -1 on padding), as `config.frames` asks."""
        wanted = place_BT[place_BT >= 0] if self.config.frames == "windows" else np.arange(len(rows))
        in_pool, room = self.config.frames == "pool", len(wanted) if capacity is None else capacity
        reservation = self._cache.reserve(rows, limit=self._slots(0 if in_pool else room))
        try:
            direct = self._decode(reservation, encoded, in_pool=in_pool)
        except BaseException:
            self._cache.forget(rows, reservation)
            self._cache.release(reservation.turn)
            raise
        for event in reservation.waits:
            event.wait()
        if in_pool:
            self._lend(reservation.turn)
            return torch.from_numpy(self._cache.frames), np.where(place_BT >= 0, reservation.slot_N[place_BT], PADDING)
        out = self._buffers.take((room, *self._cache.frames.shape[1:]))
        filled = out.numpy()[: len(wanted)]
        np.take(self._cache.frames, reservation.slot_N[wanted], axis=0, out=filled, mode="clip")
        self._cache.release(reservation.turn)
        for place, frame in direct.items():
            filled[wanted == place] = frame
        if self.config.frames == "distinct":
            return out, place_BT
        index_BT = np.full(place_BT.shape, PADDING)
        index_BT[place_BT >= 0] = np.arange(len(wanted))
        return out, index_BT

    def _decode(
        self, reservation: SlotReservation, encoded: list[tuple[_Group, int]], *, in_pool: bool
    ) -> dict[int, np.ndarray]:
        """Decode what the reservation lacks into its slots; frames without a slot by their place."""
        direct = {}
        for place in reservation.missing:
            group, inside = encoded[place]
            slot = int(reservation.slot_N[place])
            if slot == NO_SLOT and in_pool:
                raise ValueError(
                    f"loader.memory_mb {self.config.memory_mb} is too small for frames in a pool: raise it, or lower "
                    f"loop.micro_batch"
                )
            frame = np.empty(self._cache.frames.shape[1:], np.uint8) if slot == NO_SLOT else self._cache.frames[slot]
            self._decode_one(group, inside, frame)
            if slot == NO_SLOT:
                direct[place] = frame
        reservation.ready.set()
        with self._counting:
            self.decodes += len(reservation.missing)
        return direct

    def _decode_one(self, group: _Group, inside: int, frame: np.ndarray) -> None:
        """Decode into `frame` (H, W, 3). Raises ValueError naming store, shard, episode and step."""
        try:
            height, width = decode_into(group.images[inside].as_py(), frame)
        except ValueError as error:
            raise self._frame_error(group.first_row + inside, f"cannot be decoded ({error})") from error
        if (height, width) != frame.shape[:2]:
            expected = f"{frame.shape[0]}x{frame.shape[1]}"
            raise self._frame_error(group.first_row + inside, f"is {height}x{width}, its manifest says {expected}")

    def _frame_error(self, row: int, problem: str) -> ValueError:
        (shard,), (inside,) = self.index.locate(np.array([row]))
        (_,), (step,) = self.index.episodes(np.array([row]))
        number, place = self._shards[int(shard)]
        ends = np.cumsum(self.stores[number].shards[place].episode_lengths)
        return self.stores[number].frame_error(place, int(np.searchsorted(ends, inside, "right")), int(step), problem)

    def _slots(self, batch_frames: int) -> int:
        """Frames that may stay decoded beside the encoded ones and the batches under way."""
        in_flight = self.config.prefetch_batches + self.concurrent_reads + 1
        left = self._budget_bytes * (1 - _ENCODED_PART) - in_flight * batch_frames * self._frame_bytes
        return max(int(left) // self._frame_bytes, 0)

    def _lend(self, turn: int) -> None:
        """A batch that points into the pool: as many as can be waiting or in use at once keep their frames."""
        with self._counting:
            self._lent.append(turn)
            if len(self._lent) > self.config.prefetch_batches + self.concurrent_reads + 2:
                self._cache.release(self._lent.popleft())

    # --- row groups ---

    def _row_groups(self) -> tuple[np.ndarray, np.ndarray]:
        """(first row of each row group, shard it belongs to), int64 (G,)."""
        rows = np.diff(self.index.shard_starts)
        size = np.array([self.stores[n].shards[s].row_group_rows for n, s in self._shards], np.int64)
        counts = -(-rows // size)
        shard = np.repeat(np.arange(len(rows)), counts)
        number = np.arange(len(shard)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.index.shard_starts[shard] + number * size[shard], shard

    def _group_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._block_starts, rows, side="right") - 1

    def _store_of(self, group: int) -> EpisodeStore:
        return self.stores[self._shards[self._group_shard[group]][0]]

    def _group(self, number: int) -> _Group:
        """The row group, and before it the steps of the same episode that its first windows hold."""
        with self._fetching[number % _LOCKS]:  # two threads that need the same one
            return self._kept(number)

    def _fetched(self, number: int) -> _Group:
        first = int(self._block_starts[number])
        store_number, shard = self._shards[self._group_shard[number]]
        store = self.stores[store_number]
        inside = (first - int(self.index.shard_starts[self._group_shard[number]])) // store.shards[shard].row_group_rows
        table = store.read_rows(shard, inside, list(_COLUMNS))
        reach = min(int(self.index.episodes(np.array([first]))[1][0]), self.num_steps - 1)
        pieces = [table]
        while reach > (before := sum(piece.num_rows for piece in pieces[:-1])):
            inside -= 1
            piece = store.read_rows(shard, inside, list(_COLUMNS))
            pieces.insert(0, piece.slice(max(piece.num_rows - (reach - before), 0)))
        group = self._loaded(pa.concat_tables(pieces).combine_chunks(), first - reach, store_number)
        with self._counting:
            self.fetches += 1
        return group

    def _loaded(self, table: pa.Table, first_row: int, store_number: int) -> _Group:
        store = self.stores[store_number]
        physical = table["action"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        flagged = (table["flags"].to_numpy() & self._flags[store_number]) != 0
        return _Group(
            first_row=first_row,
            images=table["image"].chunk(0),
            action=self._transforms[store_number].apply(physical),
            instruction=np.searchsorted(store.instruction_ids, table["instruction"].to_numpy()),
            trained=~table["is_terminal"].to_numpy() & ~flagged,
        )


def _runs(order: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """`order` cut where sorted `values` change."""
    return np.split(order, np.flatnonzero(np.diff(values)) + 1)


def _flag_bits(stores: Sequence[EpisodeStore], names: Sequence[str]) -> list[int]:
    """The bits of each store's flags among `names`. Raises ValueError for a name that no store has."""
    known = [list(store.manifest.flag_names) for store in stores]
    unknown = [name for name in names if not any(name in flags for flags in known)]
    if unknown:
        there = ", ".join(dict.fromkeys(flag for flags in known for flag in flags)) or "none"
        roots = ", ".join(store.root for store in stores)
        raise ValueError(f"{roots} has no step flag {unknown[0]!r}: there are {there}")
    return [sum(1 << flags.index(name) for name in {*names} if name in flags) for flags in known]
