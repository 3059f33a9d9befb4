"""Rows of episode stores in, batches of windows out: `rt_models.spec.BATCH`.

Reads only the row groups and columns needed, decodes the frames of the cameras that its model reads, each once, and
keeps what it read within one memory budget. Knows nothing of order, of the model or of TensorFlow.

Axes: B windows, T steps, N distinct steps, A actions, P values of the state, D embedding.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import cachetools
import numpy as np
import pyarrow as pa
import torch

from preprocessing.loading.frame_reader import FrameReader, WantedFrames
from preprocessing.loading.reader import Batch, LoaderConfig, Reader
from preprocessing.loading.windows import PADDING, StepIndex, most_images, window_rows
from preprocessing.store.episode_store import EpisodeStore, image_column
from preprocessing.store.images import ImageSize
from preprocessing.store.robot_inputs import own_camera
from rt_models.spec import (
    MAIN_CAMERA,
    AffineTransform,
    ImageRecipe,
    StateColumns,
    frames_key,
    index_key,
    merge_contracts,
)

_COLUMNS = ("action", "instruction", "is_terminal", "flags")
_PLANNED = 0.85  # of the budget; the rest is for what passes through: pages being read, narrow columns, the allocator
_ENCODED_PART = 0.5  # of the budget: encoded bytes are dearer to fetch again than frames are to decode again
_LOCKS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class _Group:
    """A row group with the rows before it that its first windows reach back to."""

    first_row: int
    images: dict[str, pa.BinaryArray]
    """By role, of the cameras that are read and that the store has."""
    action: np.ndarray
    instruction: np.ndarray
    """int: place in the store's instruction table."""
    trained: np.ndarray
    state: np.ndarray | None
    """float32 (rows, P) normalised; None where none is read."""


class WindowReader(Reader):
    """Reads windows of `num_steps`, each `stride` after the one before, from the stores of a mixture; rows count
    through the stores in their order.

    `transforms` (one per store) turn the store's physical actions into model values. Of `cameras`, by role, frames are
    read where a store has them; `recipes` say how those beside the main one are stored. `state` is read if it is given.
    `images_counted`: whether the images of all cameras are computed together, or those of each on their own; it sets
    what `size` counts. `fetches` counts row groups read so far.
    """

    stores: Sequence[EpisodeStore]
    counts = "images"
    counted = 1024

    def __init__(
        self,
        stores: Sequence[EpisodeStore],
        transforms: Sequence[AffineTransform],
        *,
        num_steps: int,
        stride: int = 1,
        config: LoaderConfig,
        cameras: Sequence[str] = (MAIN_CAMERA,),
        recipes: Mapping[str, ImageRecipe] | None = None,
        state: StateColumns | None = None,
        images_counted: Literal["together", "each"] = "together",
    ) -> None:
        main = merge_contracts([store.contract for store in stores]).image  # refuses stores that cannot be mixed
        self.config, self.concurrent_reads, self.num_steps = config, config.decode_threads, num_steps
        self._stride, self._span = stride, (num_steps - 1) * stride  # steps that a window reaches back
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
        self.cameras, self._state, self._together = tuple(cameras), state, images_counted == "together"
        self._store_of_group = np.array([self._shards[shard][0] for shard in self._group_shard], np.int64)
        self._camera_names = [{role: own_camera(store, role) for role in cameras} for store in stores]
        self._has_camera = {
            role: np.array([names[role] is not None for names in self._camera_names]) for role in cameras
        }
        self._columns = [
            _columns(names, reads_state=state is not None, store=s)
            for names, s in zip(self._camera_names, stores, strict=True)
        ]
        budget_bytes = int(config.memory_mb * 2**20 * _PLANNED)
        recipe_of = {MAIN_CAMERA: main, **(recipes or {})}
        self._frames = FrameReader(
            {role: ImageSize(recipe_of[role].height, recipe_of[role].width) for role in cameras},
            num_rows=self.index.num_rows,
            config=config,
            budget_bytes=budget_bytes * (1 - _ENCODED_PART),
            concurrent_reads=self.concurrent_reads,
            error=self._frame_error,
        )
        groups = cachetools.LRUCache[int, _Group](budget_bytes * _ENCODED_PART, getsizeof=_num_bytes)
        self._kept = cachetools.cached(groups, lock=threading.Lock())(self._fetched)
        self._counting = threading.Lock()
        self._fetching = [threading.Lock() for _ in range(_LOCKS)]
        self.fetches = 0
        if state is not None:
            self._require_finite_states()

    @property
    def decodes(self) -> int:
        """Frames decoded so far."""
        return self._frames.decodes

    @property
    def decoded_bytes(self) -> int:
        """Of the frames that are kept decoded."""
        return self._frames.kept_bytes

    def size(self, rows: np.ndarray, crop_keys: np.ndarray, *, crops: bool) -> int:
        """Images of all cameras together, or of the one with the most: distinct frames, with `crops` under each crop.
        Where frames are not shared (`config.frames` windows), every real step has its own."""
        rows_BT = window_rows(self.index, rows, self.num_steps, self._stride)
        real_BT = rows_BT != PADDING
        _, crop_B = np.unique(crop_keys, return_inverse=True)
        identity_BT = rows_BT + (self.index.num_rows * crop_B[:, None] if crops else 0)
        store_B, counts = self._store_of_rows(rows), []
        for role in self.cameras:
            seen = identity_BT[real_BT & self._has_camera[role][store_B][:, None]]
            counts.append(len(seen) if self.config.frames == "windows" else len(np.unique(seen)))
        return sum(counts) if self._together else max(counts)

    def largest_size(self, num_rows: int, segment_rows: int) -> int:
        return most_images(
            num_rows,
            segment_rows,
            num_steps=self.num_steps,
            stride=self._stride,
            cameras=len(self.cameras) if self._together else 1,
            shared=self.config.frames != "windows",
        )

    def read(
        self,
        sample_ids: np.ndarray,
        rows: np.ndarray,
        crop_keys: np.ndarray | None = None,
        *,
        capacity: int | None = None,
    ) -> Batch:
        """The batch of the windows that end at `rows` (B,), named `sample_ids` (B,); a row of -1 is all padding.

        With a capacity the main camera has so many frames, of which those beyond the distinct ones hold anything.
        """
        rows_BT = window_rows(self.index, rows, self.num_steps, self._stride)
        distinct, first, inverse = np.unique(rows_BT, return_index=True, return_inverse=True)
        padded = int(distinct[0] == PADDING)
        owner_N = self._group_of(rows)[first[padded:] // self.num_steps]  # a window's rows all come with its last row's
        steps, frames = self._steps(distinct[padded:], owner_N, inverse.reshape(rows_BT.shape) - padded, capacity)
        real_BT = rows_BT != PADDING
        place_BT = np.where(real_BT, inverse.reshape(rows_BT.shape) - padded, 0)
        store_B = self._store_of_rows(rows)
        episode_B, step_B = self.index.episodes(rows)
        batch = {
            **{index_key(role): index_BT for role, (_, index_BT) in frames.items()},
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
        if self._state is not None:
            batch["state"] = np.where(real_BT[..., None], steps["state"][place_BT], np.float32(0))
            batch["state_mask"] = self._state.mask()[store_B]
        images = {frames_key(role): of_role for role, (of_role, _) in frames.items()}
        return images | {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in batch.items()}

    def _store_of_rows(self, rows: np.ndarray) -> np.ndarray:
        """int64 (B,): the number of the store of each row; what padding has counts for nothing."""
        shard_B, _ = self.index.locate(rows)
        return np.array([self._shards[shard][0] for shard in shard_B], np.int64)

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
    ) -> tuple[dict[str, np.ndarray], dict[str, tuple[torch.Tensor, np.ndarray]]]:
        """(arrays over distinct rows (N,): action, embedding, trained, state; by role the frames, and the row of them
        of each step (B, T))."""
        groups = {int(owner): self._group(int(owner)) for owner in np.unique(owners)}
        wanted = {role: self._wanted(role, rows, owners, groups, place_BT) for role in self.cameras}
        rooms = None if capacity is None else {role: self._room(role, capacity) for role in self.cameras}
        frames = self._frames.read(wanted, rooms)
        order = np.argsort(owners, kind="stable")
        parts: dict[str, list[np.ndarray]] = {"action": [], "embedding": [], "trained": []}
        for owner, members in zip(np.unique(owners), _runs(order, owners[order]), strict=True):
            group, inside = groups[int(owner)], rows[members] - groups[int(owner)].first_row
            parts["action"].append(group.action[inside])
            parts["trained"].append(group.trained[inside])
            parts["embedding"].append(self._store_of(int(owner)).embeddings[group.instruction[inside]])
            if group.state is not None:
                parts.setdefault("state", []).append(group.state[inside])
        undo = np.argsort(order, kind="stable")
        return {key: np.concatenate(pieces)[undo] for key, pieces in parts.items()}, frames

    def _room(self, role: str, capacity: int) -> int:
        """Frames of a camera that a batch of this capacity may have: where all cameras count together, each step that
        has another one's frame has the main one's too."""
        return capacity // 2 if self._together and role != MAIN_CAMERA and MAIN_CAMERA in self.cameras else capacity

    def _wanted(
        self, role: str, rows: np.ndarray, owners: np.ndarray, groups: Mapping[int, _Group], place_BT: np.ndarray
    ) -> WantedFrames:
        """Of the distinct rows those whose store has the camera."""
        has_N = self._has_camera[role][self._store_of_group[owners]]
        place_of_N = np.where(has_N, np.cumsum(has_N) - 1, PADDING)
        found = [groups[owner] for owner in owners[has_N].tolist()]
        encoded = [(g.images[role], row - g.first_row) for g, row in zip(found, rows[has_N].tolist(), strict=True)]
        there_BT = np.where(place_BT >= 0, place_of_N[place_BT], PADDING) if len(rows) else place_BT
        return WantedFrames(rows=rows[has_N], encoded=encoded, place_BT=there_BT)

    def _frame_error(self, row: int, role: str, problem: str) -> ValueError:
        store, shard, episode, step = self._located(row)
        return store.frame_error(shard, episode, step, problem, camera=role)

    def _located(self, row: int) -> tuple[EpisodeStore, int, int, int]:
        """(store, shard, episode within the shard, step) of a row."""
        (shard,), (inside,) = self.index.locate(np.array([row]))
        (_,), (step,) = self.index.episodes(np.array([row]))
        number, place = self._shards[int(shard)]
        ends = np.cumsum(self.stores[number].shards[place].episode_lengths)
        return self.stores[number], place, int(np.searchsorted(ends, inside, "right")), int(step)

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
        columns = self._columns[store_number]
        table = store.read_rows(shard, inside, columns)
        reach = min(int(self.index.episodes(np.array([first]))[1][0]), self._span)
        pieces = [table]
        while reach > (before := sum(piece.num_rows for piece in pieces[:-1])):
            inside -= 1
            piece = store.read_rows(shard, inside, columns)
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
            images={
                role: table[image_column(own)].chunk(0)
                for role, own in self._camera_names[store_number].items()
                if own is not None
            },
            action=self._transforms[store_number].apply(physical),
            instruction=np.searchsorted(store.instruction_ids, table["instruction"].to_numpy()),
            trained=~table["is_terminal"].to_numpy() & ~flagged,
            state=None if self._state is None else self._state_values(table, first_row, store_number),
        )

    def _require_finite_states(self) -> None:
        """Raise ValueError now for what would stop a run hours later: of stores in which conversion found some, or, of
        older ones, whoever measured the state for the contract."""
        assert self._state is not None
        for number, (store, side) in enumerate(zip(self.stores, self._state.sides, strict=True)):
            if side is None:
                continue
            counted = store.manifest.proprio.statistics or side.statistics
            if counted.count == store.manifest.statistics.count:
                continue
            places = [place for place, (owner, _) in enumerate(self._shards) if owner == number]
            for shard, place in enumerate(places):
                table = store.read_shard(shard, ["proprio", "is_terminal"])
                self._state_values(table, int(self.index.shard_starts[place]), number)

    def _state_values(self, table: pa.Table, first_row: int, store_number: int) -> np.ndarray:
        """float32 (rows, P). Raises ValueError naming shard, episode and step of a value that is not finite, but for
        terminal steps: nothing is learnt at them, conversion does not count them, and there the mean stands for it."""
        assert self._state is not None
        names, side = self.stores[store_number].manifest.proprio.names, self._state.sides[store_number]
        if side is None:
            return np.zeros((table.num_rows, len(self._state.names)), np.float32)
        recorded_NK = table["proprio"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        taken = [names.index(name) for name in side.recorded_names]
        odd_NK, is_terminal_N = ~np.isfinite(recorded_NK[:, taken]), table["is_terminal"].to_numpy()
        for row, place in np.argwhere(odd_NK & ~is_terminal_N[:, None])[:1]:
            store, shard, episode, step = self._located(first_row + int(row))
            raise ValueError(
                f"state {side.recorded_names[place]} is not finite at step {step} of episode {episode} of "
                f"{store.shards[shard].path}, and the model reads it: leave it out of model.state.names"
            )
        if odd_NK.any():
            recorded_NK = recorded_NK.copy()
            recorded_NK[:, taken] = np.where(
                odd_NK, np.asarray(side.statistics.mean, np.float32), recorded_NK[:, taken]
            )
        return self._state.values(store_number, names, recorded_NK)


def _columns(camera_names: Mapping[str, str | None], store: EpisodeStore, *, reads_state: bool) -> list[str]:
    """The columns of a store that are read."""
    pictures = [image_column(own) for own in camera_names.values() if own is not None]
    return [*pictures, *_COLUMNS, *(["proprio"] if reads_state and store.manifest.proprio.names else [])]


def _num_bytes(group: _Group) -> int:
    """Of the encoded frames."""
    return sum(images.nbytes for images in group.images.values())


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
