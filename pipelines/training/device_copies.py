"""Batches on their way to the device. To a GPU they are copied on a stream of their own, while it computes."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from preprocessing.loading.reader import Batch

AHEAD = 3  # micro-batches by which this process may be ahead of the GPU: each holds a batch there


class DeviceCopies:
    """`copied` every batch, then `used` once its work is in the GPU's queue.

    This process never waits for a step to end: as it runs ahead of the GPU, a batch is there before the step that
    computes it begins. It waits only where it is `AHEAD` micro-batches ahead, since each of them takes memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._queued: deque[tuple[Batch, torch.cuda.Event]] = deque()  # with an event behind the last use of the batch
        self._newest: Batch = {}

    def copied(self, batch: Batch) -> Batch:
        """The batch on the device; on a GPU its values come in the order of the current stream."""
        if self._stream is None:
            return {key: value.to(self._device) for key, value in batch.items()}
        while len(self._queued) >= AHEAD:
            self._queued.popleft()[1].synchronize()
        with torch.cuda.stream(self._stream):
            on_device = {key: value.to(self._device, non_blocking=True) for key, value in batch.items()}
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for value in on_device.values():
            value.record_stream(current)
        self._newest = batch  # its pinned memory is still being read
        return on_device

    def used(self) -> None:
        """All work on the batch copied last is queued."""
        if self._stream is not None:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
            self._queued.append((self._newest, event))
