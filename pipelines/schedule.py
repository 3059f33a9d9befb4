"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ConstantSchedule:
    """The peak rate after a linear warm-up."""

    warmup_steps: int = 0

    def factor(self, step: int, num_steps: int) -> float:
        """Multiplier of the peak rate for optimizer step `step`, counted from 0."""
        return min(1.0, (step + 1) / (self.warmup_steps + 1))


@dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """Linear warm-up, then half a cosine down to `final_factor` of the peak rate at the last step."""

    warmup_steps: int = 0
    final_factor: float = 0.0

    def factor(self, step: int, num_steps: int) -> float:
        """Multiplier of the peak rate for optimizer step `step`, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        progress = min(1.0, (step - self.warmup_steps) / max(1, num_steps - 1 - self.warmup_steps))
        return self.final_factor + (1 - self.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
