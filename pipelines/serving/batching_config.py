"""How frames of several robots are put together; light to import, for the command line."""

from __future__ import annotations

from dataclasses import dataclass

MOST = 32
"""Robots that a pass of the model answers at most (`pipelines.publishing.inference.TOGETHER`)."""


@dataclass(frozen=True, kw_only=True)
class BatchingConfig:
    """When a pass of the model begins, and for how many robots."""

    max_batch: int = MOST
    """Robots that are answered in one pass at most; 1 answers them one by one."""
    max_wait_ms: float = 5.0
    """Milliseconds that a frame may wait for those of other robots that have asked within the last second."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= MOST:
            raise ValueError(f"--max-batch {self.max_batch}: give a number from 1 to {MOST}")
        if not self.max_wait_ms >= 0:
            raise ValueError(f"--max-wait-ms {self.max_wait_ms}: give a number of milliseconds, 0 or more")
