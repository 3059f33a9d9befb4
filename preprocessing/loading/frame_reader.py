"""Encoded frames of several cameras in, decoded frames of a batch out: each decoded once, straight to where it stays.

Cameras of one size share one cache, and all caches one budget, which every camera has an equal number of frames of.

Axes: B windows, T steps, N distinct steps, F frames.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from preprocessing.loading.frame_cache import NO_SLOT, FrameBuffers, FrameCache, SlotReservation
from preprocessing.loading.reader import LoaderConfig
from preprocessing.loading.windows import PADDING
from preprocessing.store.images import ImageSize, decode_into

FrameError = Callable[[int, str, str], ValueError]
"""What to raise for a frame that cannot be used: its row, its camera, what is wrong with it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WantedFrames:
    """What a batch needs of one camera: the distinct steps `rows` int64 (N,), the column and place that the frame of
    each lies at, and for each step of the windows its place among `rows`, `place_BT` (B, T), -1 where there is none."""

    rows: np.ndarray
    encoded: list[tuple[pa.BinaryArray, int]]
    place_BT: np.ndarray


class FrameReader:
    """Decodes frames of cameras whose frames are `sizes`, by role; steps are rows below `num_rows`.

    `decodes` counts frames decoded so far. `budget_bytes` are for frames that stay decoded and for batches under way.
    """

    def __init__(
        self,
        sizes: Mapping[str, ImageSize],
        *,
        num_rows: int,
        config: LoaderConfig,
        budget_bytes: float,
        concurrent_reads: int,
        error: FrameError,
    ) -> None:
        self._sizes, self._num_rows, self._config, self._error = sizes, num_rows, config, error
        self._budget_bytes = budget_bytes
        self._frame_bytes = {role: size.height * size.width * 3 for role, size in sizes.items()}
        self._sharing = {role: [other for other in sizes if sizes[other] == sizes[role]] for role in sizes}
        most = int(budget_bytes // sum(self._frame_bytes.values()))
        slots = min(max(most, 1), num_rows)
        of_size = {
            size: FrameCache(slots * list(sizes.values()).count(size), size.height, size.width)
            for size in dict.fromkeys(sizes.values())
        }
        self._caches = {role: of_size[size] for role, size in sizes.items()}
        self._buffers = {role: FrameBuffers() for role in sizes}
        self._in_flight = config.prefetch_batches + concurrent_reads + 1
        self._lent: deque[list[tuple[FrameCache, int]]] = deque()
        self._counting = threading.Lock()
        self.decodes = 0

    @property
    def kept_bytes(self) -> int:
        """Of the frames that are kept."""
        return sum(len(cache) * cache.frames[0].nbytes for cache in dict.fromkeys(self._caches.values()))

    def read(
        self, wanted: Mapping[str, WantedFrames], capacities: Mapping[str, int] | None
    ) -> dict[str, tuple[torch.Tensor, np.ndarray]]:
        """By role (frames uint8 (F, H, W, 3), row of them of each step (B, T) with -1 where there is none), as
        `config.frames` asks. With capacities, by role, there are so many frames, of which those beyond the wanted ones
        hold anything."""
        in_pool = self._config.frames == "pool"
        rooms = capacities or {role: self._room(each) for role, each in wanted.items()}
        batch_bytes = 0 if in_pool else sum(room * self._frame_bytes[role] for role, room in rooms.items())
        slots = self._slots(batch_bytes)
        read, turns = {}, list[tuple[FrameCache, int]]()
        try:
            for role, each in wanted.items():
                reservation, direct = self._reserved(role, each, slots)
                turns.append((self._caches[role], reservation.turn))
                if in_pool:
                    slot_BT = np.full(each.place_BT.shape, PADDING)
                    there_BT = each.place_BT >= 0
                    slot_BT[there_BT] = reservation.slot_N[each.place_BT[there_BT]]
                    read[role] = torch.from_numpy(self._caches[role].frames), slot_BT
                else:
                    read[role] = self._copied(role, each, reservation, direct, rooms[role])
        except BaseException:
            self._release(turns)
            raise
        if in_pool:
            self._lend(turns)
        else:
            self._release(turns)
        return read

    def _room(self, wanted: WantedFrames) -> int:
        return int((wanted.place_BT >= 0).sum()) if self._config.frames == "windows" else len(wanted.rows)

    def _reserved(self, role: str, wanted: WantedFrames, slots: int) -> tuple[SlotReservation, dict[int, np.ndarray]]:
        """The slots of the wanted frames, all decoded, and by place those frames that no slot was free for."""
        cache, sharing = self._caches[role], self._sharing[role]
        keys = wanted.rows + sharing.index(role) * self._num_rows
        reservation = cache.reserve(keys, limit=slots * len(sharing))
        try:
            direct = self._decode(role, wanted, reservation)
        except BaseException:
            cache.forget(keys, reservation)
            cache.release(reservation.turn)
            raise
        for event in reservation.waits:
            event.wait()
        return reservation, direct

    def _copied(
        self,
        role: str,
        wanted: WantedFrames,
        reservation: SlotReservation,
        direct: Mapping[int, np.ndarray],
        room: int,
    ) -> tuple[torch.Tensor, np.ndarray]:
        """The frames in memory of the batch's own."""
        place_BT, cache = wanted.place_BT, self._caches[role]
        each_step = self._config.frames == "windows"
        places = place_BT[place_BT >= 0] if each_step else np.arange(len(wanted.rows))
        out = self._buffers[role].take((room, *cache.frames.shape[1:]))
        filled = out.numpy()[: len(places)]
        np.take(cache.frames, reservation.slot_N[places], axis=0, out=filled, mode="clip")
        for place, frame in direct.items():
            filled[places == place] = frame
        if not each_step:
            return out, place_BT
        index_BT = np.full(place_BT.shape, PADDING)
        index_BT[place_BT >= 0] = np.arange(len(places))
        return out, index_BT

    def _decode(self, role: str, wanted: WantedFrames, reservation: SlotReservation) -> dict[int, np.ndarray]:
        """Decode what the reservation lacks into its slots; frames without a slot by their place."""
        direct, cache = {}, self._caches[role]
        for place in reservation.missing:
            slot = int(reservation.slot_N[place])
            if slot == NO_SLOT and self._config.frames == "pool":
                raise ValueError(
                    f"loader.memory_mb {self._config.memory_mb} is too small for frames in a pool: raise it, or lower "
                    f"loop.micro_batch"
                )
            frame = np.empty(cache.frames.shape[1:], np.uint8) if slot == NO_SLOT else cache.frames[slot]
            self._decode_one(role, int(wanted.rows[place]), *wanted.encoded[place], frame)
            if slot == NO_SLOT:
                direct[place] = frame
        reservation.ready.set()
        with self._counting:
            self.decodes += len(reservation.missing)
        return direct

    def _decode_one(self, role: str, row: int, images: pa.BinaryArray, inside: int, frame: np.ndarray) -> None:
        """Decode into `frame` (H, W, 3)."""
        try:
            height, width = decode_into(images[inside].as_py(), frame)
        except ValueError as error:
            raise self._error(row, role, f"cannot be decoded ({error})") from error
        if (height, width) != frame.shape[:2]:
            expected = f"{frame.shape[0]}x{frame.shape[1]}"
            raise self._error(row, role, f"is {height}x{width}, its manifest says {expected}")

    def _slots(self, batch_bytes: int) -> int:
        """Frames of each camera that may stay decoded beside the batches under way."""
        left = self._budget_bytes - self._in_flight * batch_bytes
        return max(int(left) // sum(self._frame_bytes.values()), 0)

    def _lend(self, turns: list[tuple[FrameCache, int]]) -> None:
        """A batch that points into the pool: as many as can be waiting or in use at once keep their frames."""
        with self._counting:
            self._lent.append(turns)
            if len(self._lent) > self._in_flight + 1:
                self._release(self._lent.popleft())

    def _release(self, turns: list[tuple[FrameCache, int]]) -> None:
        for cache, turn in turns:
            cache.release(turn)
