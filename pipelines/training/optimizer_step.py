"""One optimizer step of a rank: micro-batches through the model until the engine updates the weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import torch

from cluster.context import WorkerContext
from cluster.engine import Engine
from pipelines.config.experiment import Experiment
from pipelines.training.loop_state import LoopState
from pipelines.training.run_files import SampleLog
from pipelines.training.step_metrics import StepMetrics
from preprocessing.loading.loader import Batch

log = logging.getLogger(__name__)


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
        model: Any,
        metrics: StepMetrics,
        samples: SampleLog | None,
    ) -> None:
        self._experiment, self._device = experiment, context.device
        self._engine, self._model = engine, model
        self._metrics, self._samples = metrics, samples

    def take(self, step: int, batches: Iterator[Batch], state: LoopState) -> float:
        """Step number `step`, from 1; the gradient norm before clipping. All ranks; raises as `LoopState.see_norm`."""
        self._engine.set_learning_rate(self._experiment.learning_rate(step))
        sample_ids, gradient_norm = [], None
        while gradient_norm is None:  # the engine knows how many micro-batches make an update
            batch = next(batches)
            sample_ids.append(batch["sample_id"])
            gradient_norm = self._micro_batch(batch)
        state.see_norm(gradient_norm, step, self._experiment.loop)
        if not math.isfinite(gradient_norm):
            skipped = torch.cat(sample_ids).tolist()
            log.warning("step %d is skipped, its gradient norm is %s; samples %s", step, gradient_norm, skipped)
        if self._samples is not None:
            self._samples.end_step(step)
        return gradient_norm

    def _micro_batch(self, batch: Batch) -> float | None:
        """Forward and backward; the gradient norm if this was the last micro-batch of the step."""
        self._metrics.count(batch)
        if self._samples is not None:
            self._samples.add(batch)
        on_device = {key: value.to(self._device, non_blocking=True) for key, value in batch.items()}
        loss = self._engine.forward(on_device)
        self._metrics.add(on_device, loss, getattr(self._model, "row_losses_B", None))
        self._engine.backward(loss)
        return self._engine.step()
