"""The loop's own state, beside the engine's; every checkpoint holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from pipelines.config.experiment import LoopConfig
from preprocessing.store.json_files import JsonObject


@dataclass(kw_only=True)
class LoopState:
    """Of the metric loop.best_by: its lowest value, the step of it, and how many measurements ago that was."""

    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    skipped: int = 0
    """Updates that were left out so far because their gradient was not finite."""
    skipped_in_a_row: int = 0

    @staticmethod
    def from_plain(data: JsonObject) -> LoopState:
        known = {field.name for field in fields(LoopState)}
        return LoopState(**{key: value for key, value in data.items() if key in known})

    def to_plain(self) -> dict[str, object]:
        return asdict(self)

    def see(self, measured: Mapping[str, float], step: int, best_by: str) -> None:
        """Record the metric, if it was measured at this step."""
        value = measured.get(best_by)
        if value is None:
            return
        if math.isfinite(value) and (self.best is None or value < self.best):
            self.best, self.best_step, self.stale = value, step, 0
        else:
            self.stale += 1

    def is_stale(self, loop: LoopConfig) -> bool:
        """Whether training is to end early."""
        return 0 < loop.patience <= self.stale

    def see_norm(self, gradient_norm: float, step: int, loop: LoopConfig) -> None:
        """Count an update that was skipped. Raises FloatingPointError if the run is to stop instead."""
        if math.isfinite(gradient_norm):
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        remedy = "lower optimizer.lr or look at the data with rtp inspect; the last checkpoint is still good"
        if loop.on_nonfinite == "stop":
            raise FloatingPointError(f"the gradient norm is {gradient_norm} at step {step}: {remedy}")
        if self.skipped_in_a_row > loop.max_skips:
            raise FloatingPointError(
                f"{self.skipped_in_a_row} updates in a row up to step {step} had a gradient norm that is not finite, "
                f"and loop.max_skips is {loop.max_skips}: {remedy}"
            )
