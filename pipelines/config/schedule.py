"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ConstantSchedule:
    """The peak rate after a linear warm-up."""

    warmup_steps: int = 0
    """Optimizer steps in which the rate rises linearly to its peak."""

    def __post_init__(self) -> None:
        _require_steps(self.warmup_steps)

    def factor(self, step: int, num_steps: int) -> float:
        """Multiplier of the peak rate for optimizer step `step`, counted from 0."""
        return min(1.0, (step + 1) / (self.warmup_steps + 1))


@dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """Linear warm-up, then half a cosine down to `final_factor` of the peak rate at the last step."""

    warmup_steps: int = 0
    """Optimizer steps in which the rate rises linearly to its peak."""
    final_factor: float = 0.0
    """Rate at the last step, as a share of the peak rate."""

    def __post_init__(self) -> None:
        _require_steps(self.warmup_steps)
        if not 0 <= self.final_factor < math.inf:
            raise ValueError(f"schedule.final_factor must be finite and at least 0, got {self.final_factor}")

    def factor(self, step: int, num_steps: int) -> float:
        """Multiplier of the peak rate for optimizer step `step`, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        progress = min(1.0, (step - self.warmup_steps) / max(1, num_steps - 1 - self.warmup_steps))
        return self.final_factor + (1 - self.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))


def _require_steps(warmup_steps: int) -> None:
    if warmup_steps < 0:
        raise ValueError(f"schedule.warmup_steps must be at least 0, got {warmup_steps}")
