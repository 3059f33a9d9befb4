"""Decoded frames in one block of memory: the least recently used make room, nothing is ever allocated anew.

Frames as arrays of their own come and go by the thousand per second; the allocator then either returns their pages to
the system, which clears them for their next use, or keeps more than was asked for.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import torch

NO_SLOT = -1


@dataclass(kw_only=True)
class _Entry:
    slot: int
    turn: int
    ready: threading.Event


@dataclass(frozen=True, kw_only=True)
class SlotReservation:
    """The slots of some rows: `slot_N` int64, NO_SLOT where there is no room. `missing` are places to be decoded by the
    caller, `waits` belong to frames that other callers are decoding."""

    turn: int
    slot_N: np.ndarray
    missing: list[int]
    waits: list[threading.Event]
    ready: threading.Event = field(default_factory=threading.Event)


class FrameCache:
    """`frames` uint8 (S, H, W, 3). Memory is taken from the system as slots are first used, up to `limit` of them."""

    def __init__(self, num_slots: int, height: int, width: int) -> None:
        self.frames = np.empty((num_slots, height, width, 3), np.uint8)
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._free = list(range(num_slots - 1, -1, -1))
        self._turn, self._active = 0, set[int]()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def reserve(self, rows: np.ndarray, *, limit: int) -> SlotReservation:
        """Slots for distinct `rows` (N,), kept until `release`; at most `limit` in use, if reservations allow."""
        with self._lock:
            self._turn += 1
            self._active.add(self._turn)
            reservation = SlotReservation(turn=self._turn, slot_N=np.empty(len(rows), np.int64), missing=[], waits=[])
            for place, row in enumerate(rows.tolist()):
                entry = self._entries.get(row)
                if entry is None:
                    reservation.missing.append(place)
                    reservation.slot_N[place] = self._enter(row, reservation, limit)
                    continue
                self._entries.move_to_end(row)
                entry.turn = self._turn
                reservation.slot_N[place] = entry.slot
                if not entry.ready.is_set() and entry.ready not in reservation.waits:
                    reservation.waits.append(entry.ready)
            return reservation

    def release(self, turn: int) -> None:
        """The frames of a reservation may be overwritten from now on."""
        with self._lock:
            self._active.discard(turn)

    def forget(self, rows: np.ndarray, reservation: SlotReservation) -> None:
        """Undo a reservation whose decoding failed."""
        with self._lock:
            for place in reservation.missing:
                entry = self._entries.pop(int(rows[place]), None)
                if entry is not None:
                    self._free.append(entry.slot)
        reservation.ready.set()

    def _enter(self, row: int, reservation: SlotReservation, limit: int) -> int:
        oldest = min(self._active)
        while len(self._entries) >= min(limit, len(self.frames)):
            first = next(iter(self._entries), None)
            if first is None or self._entries[first].turn >= oldest:
                return NO_SLOT
            self._free.append(self._entries.pop(first).slot)
        slot = self._free.pop()
        self._entries[row] = _Entry(slot=slot, turn=reservation.turn, ready=reservation.ready)
        return slot


class FrameBuffers:
    """Memory of batches, used again once the batch that held it is gone."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """uint8 of `shape`, with whatever was there before."""
        # Pinned only where this process uses a GPU: pinning opens a context on one, which a CPU worker must not do.
        if torch.cuda.is_initialized():  # torch keeps pinned blocks itself, and knows when the device has read them
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        num_bytes = math.prod(shape)
        fits = [at for at, buffer in enumerate(self._free) if num_bytes <= len(buffer)]
        buffer = self._free.pop(fits[0]) if fits else np.empty(num_bytes + num_bytes // 8, np.uint8)
        if not fits:
            self._free.clear()  # they are all too small
        view = buffer[:num_bytes].reshape(shape)
        weakref.finalize(view, self._free.append, buffer)
        return torch.from_numpy(view)
