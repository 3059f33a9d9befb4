"""What the loader asks of a reader, and the settings they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

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
    mask_flags: tuple[str, ...] = ()
    """Names of step flags of the stores (such as first_zero_action) whose steps are not trained on."""
    relabel: tuple[str, ...] = ()
    """Names of datasets (such as bridge_dataset) whose arm actions become what the recorded state changed by until the
    next step, as Octo trains on them, instead of the source's commands."""

    def __post_init__(self) -> None:
        for name in ("memory_mb", "decode_threads", "prefetch_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"loader: {name} must be at least 1, got {getattr(self, name)}")


class Reader(Protocol):
    """Turns rows of its stores into a batch. A global row number counts through the stores in their order.

    Optional: `cost(rows)`, the length of each sample as an array: a rank's samples of one global batch are then ordered
    by it before they are cut into micro-batches. `block_starts`, int64 rows at which a read begins cheaply.
    `concurrent_reads`, how many threads may call `read` at once, else 1. `datasets`, the names of the stores.
    """

    config: LoaderConfig

    @property
    def stores(self) -> Sequence[Store]: ...

    @property
    def store_rows(self) -> Sequence[int]:
        """Rows of each store."""
        ...

    def read(self, sample_ids: np.ndarray, rows: np.ndarray, crop_keys: np.ndarray | None = None) -> Batch:
        """The batch of samples at `rows` (B,); -1 is padding. Has at least sample_id and store, int64 (B,)."""
        ...

    def close(self) -> None: ...
