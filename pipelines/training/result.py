"""How a training ended and what it left behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a training ended, if not by its last step.

    stopped: why it was asked to stop. ended_early: the step at which `loop.patience` ended it.
    """

    stopped: str | None = None
    ended_early: int | None = None

    @staticmethod
    def of(returned: Mapping[str, float | str]) -> Ending:
        """From what `pipelines.train_loop.train` returned."""
        stopped, ended_early = returned.get("stopped"), returned.get("ended_early")
        return Ending(
            stopped=None if stopped is None else str(stopped),
            ended_early=None if ended_early is None else int(ended_early),
        )

    def to_json(self) -> dict[str, int | str]:
        """Only what there is."""
        values = {"stopped": self.stopped, "ended_early": self.ended_early}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What `pipelines.train.run_training` returns.

    steps: optimizer steps of the newest checkpoint; 0 without one. metrics: the newest value of every metric.
    skipped_steps: updates left out because of NaN or infinity. best_step, best_checkpoint: of the checkpoint with the
    best `loop.best_by`, if it was measured. stopped, ended_early: as in `Ending`.
    dimension_shares: of a mixture, by action dimension, the part of its samples that comes from each dataset.
    """

    output: str
    contract: str
    metrics: Mapping[str, float]
    steps: int = 0
    checkpoint: str | None = None
    skipped_steps: int | None = None
    best_step: int | None = None
    best_checkpoint: str | None = None
    stopped: str | None = None
    ended_early: int | None = None
    dimension_shares: Mapping[str, Mapping[str, float]] | None = None

    def to_json(self) -> dict[str, object]:
        """Flat: metrics beside the fields that are known; what `rtp train --json` prints."""
        fields = {name: value for name, value in vars(self).items() if value is not None and name != "metrics"}
        return {**self.metrics, **fields}
