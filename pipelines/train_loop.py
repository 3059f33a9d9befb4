"""The training loop: batches in, checkpoints and metrics out. It sees a WorkerContext and an Engine, never Ray.

The same function runs alone (`LocalContext` + `TorchEngine`) and as one of many ranks (`RayContext` +
`DeepSpeedEngine`). A run is determined by its Experiment and its stores: sample order, crops and learning rate are
functions of the step, so a run continued from a checkpoint is the run that was interrupted.

Read on in training/: preparation (what the stores decide), optimizer_step, validation, checkpointing, run_logger.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import torch
from torch import nn

from cluster.agreement import on_rank_0
from cluster.context import WorkerContext
from cluster.engine import Engine
from cluster.stop_file import StopRequest
from pipelines.training.checkpointing import Checkpointer, Start
from pipelines.training.data import open_reader
from pipelines.training.fixed_shapes import print_shapes, shapes_json, training_loader
from pipelines.training.initial_weights import model_factory
from pipelines.training.job import PreparedJob, TrainJob
from pipelines.training.optimizer_step import OptimizerStep
from pipelines.training.preparation import open_stores, prepared
from pipelines.training.remote_reader import reading_remotely
from pipelines.training.result import Ending
from pipelines.training.run_files import SampleLog
from pipelines.training.run_logger import RunLogger
from pipelines.training.step_metrics import StepMetrics
from pipelines.training.validation import Validator
from preprocessing.loading.loader import Batch, Loader
from preprocessing.store.web_store import open_store

__all__ = ["TrainJob", "train"]


def train(context: WorkerContext, job: TrainJob) -> dict[str, float | str]:
    """Train to `loop.steps`, from scratch or from the latest checkpoint of `job.output`; the last metrics logged.

    How the run ended, if not by its last step, stands beside the metrics (`Ending`): a run that was asked to stop
    (cluster/stop_file.py) leaves a checkpoint. `rtp train` gives a job that is prepared already; any other is prepared
    here, on rank 0. Raises ValueError, with what to do, where the GPU's memory runs out.
    """
    if not isinstance(job, PreparedJob):
        job = on_rank_0(context, prepared, job)
    try:
        with ExitStack() as parts:
            loop = _open_loop(context, job, parts)
            metrics = loop.run()
            ending = loop.ending()
            loop.logger.stopped = ending.stopped
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"the memory of {context.device} ran out at {job.experiment.loop.micro_batch} samples a micro-batch: give "
            f"a smaller --loop.micro-batch (rtp doctor --fit finds the largest), activation checkpointing, or where "
            f"batches are replayed --engine.cuda-graphs off. {str(error).splitlines()[0]}"
        ) from error
    return {**metrics, **ending.to_json()}


def _open_loop(context: WorkerContext, job: PreparedJob, parts: ExitStack) -> TrainingLoop:
    """The loop with all its parts, at the step where the run starts; `parts` closes them, the engine last."""
    experiment, stores = job.experiment, open_stores(job)
    checkpointer = parts.enter_context(Checkpointer(context, job))
    start = checkpointer.choose()
    engine, model = _build_engine(context, job, checkpointer, start)
    parts.callback(engine.close)
    reader = parts.enter_context(closing(open_reader(experiment, stores, job.contract, is_training=True)))
    validator = None
    if job.validation:
        held_out = [open_store(path, split="val") for path in job.validation]
        validation_reader = parts.enter_context(closing(open_reader(experiment, held_out, job.contract)))
        validator = Validator(experiment, context, validation_reader)
    if experiment.loader.where == "remote":
        reader = parts.enter_context(closing(reading_remotely(reader, job, context)))
    loader = training_loader(experiment, reader, context, start.position)
    samples = SampleLog(job.output, context) if experiment.loop.log_samples else None
    metrics = StepMetrics(experiment, context, [store.name for store in stores])
    logger = parts.enter_context(RunLogger(context, job, start.step))
    if (derived := getattr(engine, "deepspeed_config", None)) is not None:
        logger.file(derived, "deepspeed.json")
    planned = {"training": loader.shapes, "validation": None if validator is None else validator.shapes}
    if shapes := {phase: its for phase, its in planned.items() if its is not None}:
        logger.file({phase: shapes_json(its) for phase, its in shapes.items()}, "shapes.json")
        for phase, its in shapes.items() if context.rank == 0 else ():
            print_shapes(phase, its)
    return TrainingLoop(
        job=job,
        engine=engine,
        loader=loader,
        optimizer_step=OptimizerStep(experiment, context, engine=engine, model=model, metrics=metrics, samples=samples),
        metrics=metrics,
        validator=validator,
        checkpointer=checkpointer,
        logger=logger,
        stop=parts.enter_context(closing(StopRequest(job.output, context))),
        start=start,
    )


def _build_engine(
    context: WorkerContext, job: PreparedJob, checkpointer: Checkpointer, start: Start
) -> tuple[Engine, nn.Module]:
    """The engine with its model as they are at the start, and the bare model."""
    experiment, loop = job.experiment, job.experiment.loop
    torch.manual_seed(loop.seed)
    accumulation = experiment.accumulation(context.world_size)
    engine = experiment.engine.build(context, micro_batch=loop.micro_batch, accumulation=accumulation)
    initial_weights = job.init if start.checkpoint is None else None
    resumed = start.checkpoint is not None
    factory = model_factory(experiment, initial_weights, job.tracking_uri, device=context.device, resumed=resumed)
    model = engine.build(factory, experiment.optimizer.build)
    torch.manual_seed(loop.seed + context.rank)  # each rank has dropout of its own
    checkpointer.restore(start, engine)
    return engine, model


class TrainingLoop:
    """The steps of one run on one rank. All ranks take them together and decide alike when to log, save and end."""

    def __init__(
        self,
        *,
        job: PreparedJob,
        engine: Engine,
        loader: Loader,
        optimizer_step: OptimizerStep,
        metrics: StepMetrics,
        validator: Validator | None,
        checkpointer: Checkpointer,
        logger: RunLogger,
        stop: StopRequest,
        start: Start,
    ) -> None:
        self.experiment, self.settings = job.experiment, job.experiment.loop
        self.last_step = job.until or self.settings.steps
        self.engine, self.loader, self.optimizer_step, self.metrics = engine, loader, optimizer_step, metrics
        self.validator, self.checkpointer, self.logger, self.stop = validator, checkpointer, logger, stop
        self.step, self.state = start.step, start.loop_state

    def run(self) -> dict[str, float]:
        """To the end; the newest value of every metric."""
        newest: dict[str, float] = {}
        with closing(iter(self.loader)) as batches:  # type: ignore[type-var]
            while not self._is_over():
                newest |= self._next_step(batches)
        self.checkpointer.wait()
        return newest

    def _next_step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """One optimizer step and what is due after it; the metrics measured at this step."""
        settings = self.settings
        self.optimizer_step.take(self.step + 1, batches, self.state)
        self.step += 1
        self.stop.ask()
        measured: dict[str, float] = {}
        if self._is_over() or self._is_due(settings.log_every):
            measured |= self._log()
        if self.step == settings.steps or self._is_due(settings.evaluate_every):
            measured |= self._validate()
        self.state.see(measured, self.step, settings.best_by)  # after which patience may end the run
        if self._is_over() or self._is_due(settings.checkpoint_every):
            self._save(measured)
        return measured

    def _is_over(self) -> bool:
        return self.step >= self.last_step or self.stop.reason is not None or self.state.is_stale(self.settings)

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _log(self) -> dict[str, float]:
        """One line of metrics: means over the steps since the last line and over all ranks."""
        gradient_norm = self.optimizer_step.settle(self.state)
        metrics = self.metrics.metrics(self.loader.waited_s)
        metrics |= {"gradient_norm": gradient_norm, "learning_rate": self.experiment.learning_rate(self.step)}
        if self.settings.on_nonfinite == "skip":
            metrics["skipped_steps"] = self.state.skipped
            metrics = {key: value for key, value in metrics.items() if math.isfinite(value)}
        self.logger.report(metrics, self.step)
        return metrics

    def _validate(self) -> dict[str, float]:
        if self.validator is None:
            return {}
        self.optimizer_step.settle(self.state)
        began = time.perf_counter()
        metrics = self.validator.measure(self.engine)
        self.metrics.leave_out(time.perf_counter() - began)
        self.logger.report(metrics, self.step)
        return metrics

    def _save(self, measured: dict[str, float]) -> None:
        self.optimizer_step.settle(self.state)
        self.optimizer_step.publish_samples()
        self.checkpointer.save(
            self.step,
            self.engine,
            position=self.loader.state(),
            loop_state=self.state,
            measured=measured,
            mlflow_run_id=self.logger.mlflow_run_id,
        )
        self.logger.checkpointed({f"loader/{key}": value for key, value in self.loader.report().items()}, self.step)

    def ending(self) -> Ending:
        """How the run ended; the same on every rank."""
        if self.stop.reason is not None:
            place = f"stopped at step {self.step} of {self.settings.steps}, with a checkpoint"
            return Ending(stopped=f"{self.stop.reason}: {place}")
        return Ending(ended_early=self.step if self.state.is_stale(self.settings) else None)
