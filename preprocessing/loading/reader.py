"""What the loader asks of a reader, and the settings they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from preprocessing.store.web_store import Store

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How batches are read; nothing here but `mask_flags`, `relabel` and `mode` changes what is trained on."""

    memory_mb: int = 1536
    """Budget of one rank for what it has read, decoded and made ready, in megabytes (2^20 bytes)."""
    decode_threads: int = 2
    """Threads that read and decode; each works on a micro-batch of its own."""
    prefetch_batches: int = 2
    """Micro-batches kept ready ahead of the training step."""
    frames: Literal["distinct", "windows", "pool"] = "distinct"
    """What a batch's frames are: its distinct frames; one per step of each window; or the reader's own pool of decoded
    frames, which nothing is copied out of and which holds until the next batch is asked for (fastest without a GPU)."""
    mode: Literal["read", "cached", "synthetic"] = "read"
    """Where batches come from: the stores; the first micro-batches over and over; or the same with frames of noise.
    The last two tell a run that waits for its data from one that waits for its model."""
    where: Literal["local", "remote"] = "local"
    """Where batches are read and decoded: in the process that trains, or by Ray actors on nodes without GPUs, for a GPU
    node whose own cores do not suffice. The batches are the same."""
    remote_readers: int = 1
    """Such actors for each worker, of decode_threads CPU cores and memory_mb each. Frames that neighbouring windows
    share are decoded once by each of them."""
    mask_flags: tuple[str, ...] = ()
    """Names of step flags of the stores (such as first_zero_action) whose steps are not trained on."""
    relabel: tuple[str, ...] = ()
    """Names of datasets (such as bridge_dataset) whose arm actions become what the recorded state changed by until the
    next step, as Octo trains on them, instead of the source's commands."""

    def __post_init__(self) -> None:
        for name in ("memory_mb", "decode_threads", "prefetch_batches", "remote_readers"):
            if getattr(self, name) < 1:
                raise ValueError(f"loader: {name} must be at least 1, got {getattr(self, name)}")
        if self.where == "remote" and self.frames == "pool":
            raise ValueError(
                "loader.where remote: the frames of a pool stay where they are; use loader.frames distinct"
            )


class Reader(ABC):
    """Turns rows of its stores into a batch. A global row number counts through the stores in their order."""

    config: LoaderConfig
    stores: Sequence[Store]
    store_rows: Sequence[int]
    """Rows of each store."""
    concurrent_reads: int = 1
    """How many threads may call `read` at once."""

    @property
    def datasets(self) -> Sequence[str]:
        """A name for each store in reports; its number unless the reader knows better."""
        return [str(number) for number in range(len(self.store_rows))]

    @property
    def block_starts(self) -> np.ndarray:
        """int64 (G,): global rows at which a read begins cheaply; by default all rows are one block."""
        return np.zeros(1, np.int64)

    def cost(self, rows: np.ndarray) -> np.ndarray | None:
        """The length of each sample of `rows` (B,), or None if all are alike.

        A rank's samples of one global batch are ordered by it before they are cut into micro-batches.
        """
        return None

    @abstractmethod
    def read(self, sample_ids: np.ndarray, rows: np.ndarray, crop_keys: np.ndarray | None = None) -> Batch:
        """The batch of samples at `rows` (B,); -1 is padding. Has at least sample_id and store, int64 (B,)."""

    @abstractmethod
    def close(self) -> None: ...
