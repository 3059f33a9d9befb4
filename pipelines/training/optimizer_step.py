"""One optimizer step of a rank: micro-batches through the model until the engine updates the weights.

On a GPU nothing here waits for the device: the engine decides there whether an update is made, and the gradient norms
are read some steps later.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cluster.context import WorkerContext
from cluster.engine import Engine
from pipelines.config.experiment import Experiment
from pipelines.training.device_copies import DeviceCopies
from pipelines.training.loop_state import LoopState
from pipelines.training.run_files import SampleLog
from pipelines.training.step_metrics import StepMetrics
from preprocessing.loading.loader import Batch

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """A step that was taken; `norm` is (), on the device."""

    step: int
    norm: Tensor
    sample_ids: list[Tensor]


class OptimizerStep:
    """Takes the steps of a run one by one; `model` is the bare model of `engine`.

    metrics: counts every micro-batch. samples: writes down which were trained on, if asked to.
    """

    def __init__(
        self,
        experiment: Experiment,
        context: WorkerContext,
        *,
        engine: Engine,
        model: nn.Module,
        metrics: StepMetrics,
        samples: SampleLog | None,
    ) -> None:
        self._experiment, self._looks_later = experiment, context.device.type != "cpu"
        self._engine, self._model = engine, model
        self._metrics, self._samples = metrics, samples
        self._copies = DeviceCopies(context.device)
        self._unseen: list[_Taken] = []
        self._newest_norm = math.nan

    def take(self, step: int, batches: Iterator[Batch], state: LoopState) -> None:
        """Step number `step`, from 1. All ranks; on a CPU raises as `settle`."""
        self._engine.set_learning_rate(self._experiment.learning_rate(step))
        sample_ids, norm = [], None
        while norm is None:  # the engine knows how many micro-batches make an update
            batch = next(batches)
            sample_ids.append(batch["sample_id"])
            norm = self._micro_batch(batch)
        self._unseen.append(_Taken(step=step, norm=norm, sample_ids=sample_ids))
        if not self._looks_later:
            self.settle(state)
        if self._samples is not None:
            self._samples.end_step(step)

    def settle(self, state: LoopState) -> float:
        """Look at the gradient norms of the steps taken since the last look; the newest one, before clipping.

        Waits for the device. Raises as `LoopState.see_norm`, on all ranks.
        """
        taken, self._unseen = self._unseen, []
        for each, norm in zip(taken, torch.stack([t.norm for t in taken]).tolist() if taken else (), strict=True):
            self._newest_norm = norm
            state.see_norm(norm, each.step, self._experiment.loop)
            if not math.isfinite(norm):
                skipped = torch.cat(each.sample_ids).tolist()
                log.warning("step %d is skipped, its gradient norm is %s; samples %s", each.step, norm, skipped)
        return self._newest_norm

    def publish_samples(self) -> None:
        """Before every checkpoint."""
        if self._samples is not None:
            self._samples.publish()

    def _micro_batch(self, batch: Batch) -> Tensor | None:
        """Forward and backward; the gradient norm if this was the last micro-batch of the step."""
        self._metrics.count(batch)
        if self._samples is not None:
            self._samples.add(batch)
        on_device = self._copies.copied(batch)
        loss = self._engine.forward_backward(on_device)
        self._metrics.add(on_device, loss, getattr(self._model, "row_losses_B", None))
        self._copies.used()
        return self._engine.step()
