"""The training loop: batches in, checkpoints and metrics out. It sees a WorkerContext and an Engine, never Ray.

The same function runs alone (`LocalContext` + `TorchEngine`) and as one of many ranks (`RayContext` +
`DeepSpeedEngine`). A run is determined by its Experiment and its stores: sample order, crops and learning rate are
functions of the step, so a run continued from a checkpoint is the run that was interrupted.
"""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from cluster.background import BackgroundSaver
from cluster.context import WorkerContext
from cluster.engine import Engine
from cluster.stop_file import StopFile, StopWatch
from cluster.storage import Checkpoint, CheckpointFolder
from pipelines.config.serialization import to_plain
from pipelines.publishing.training_stores import StoreReference, with_references
from pipelines.training.co_fine_tuning import PLANS, plans_fingerprint
from pipelines.training.data import build_loader, open_reader, training_contract
from pipelines.training.git_revision import git_revision
from pipelines.training.initial_weights import model_factory, require_same_run
from pipelines.training.job import TrainJob
from pipelines.training.loop_state import LoopState
from pipelines.training.run_files import SampleLog
from pipelines.training.run_logger import RunRecord
from pipelines.training.step_metrics import StepMetrics
from pipelines.training.validation import validation_loss
from preprocessing.loading.loader import Batch
from preprocessing.store.web_store import open_store

log = logging.getLogger(__name__)


def train(context: WorkerContext, job: TrainJob) -> dict[str, Any]:
    """Train to `loop.steps`, from scratch or from the latest checkpoint of `job.output`; the last metrics logged.

    A run that was asked to stop (cluster/stop_file.py) leaves a checkpoint and says why under "stopped".
    """
    session = _Session(context, job)
    try:
        metrics = session.run()
    except BaseException as error:
        if isinstance(error, FloatingPointError):  # on every rank at once: the checkpoint being written can be finished
            session.saver.close()
        session.close(failure=f"{type(error).__name__}: {error}")
        raise
    session.close(failure=metrics.get("stopped"))
    return metrics


class _Session:
    """One attempt at a run on one rank: what was opened, and the step it has reached."""

    def __init__(self, context: WorkerContext, job: TrainJob) -> None:
        self.context, self.job, self.experiment = context, job, job.experiment
        self.loop = job.experiment.loop
        stores = [open_store(path, split="train") for path in job.stores]
        self.contract = training_contract(self.experiment, stores)
        self.references = [StoreReference.of(store, job.output) for store in stores]
        self.plans = plans_fingerprint(self.experiment.co_fine_tuning)
        self.folder = CheckpointFolder(f"{job.output}/checkpoints")
        # Not only with --resume: a worker that Ray starts again after a failure goes on from here too. That a new run
        # does not begin in another one's folder is checked once, before any worker starts (pipelines/train.py).
        self.found = self.folder.latest()
        self.state = LoopState.from_plain(self.found.metadata.get("loop_state", {}) if self.found else {})
        self.step = self.found.step if self.found else 0
        self.engine = self._build_engine()
        self.reader = open_reader(self.experiment, stores, self.contract)
        held_out = [open_store(path, split="val") for path in job.validation]
        self.validation = open_reader(self.experiment, held_out, self.contract) if held_out else None
        position = self.found.metadata["position"] if self.found else None
        self.loader = build_loader(self.experiment, self.reader, context, position)
        self.saver = BackgroundSaver(self.folder, context)
        self.samples = SampleLog(job.output, context) if self.loop.log_samples else None
        self.meter = StepMetrics(self.experiment, context, [store.name for store in stores])
        self.record = RunRecord(job, self.contract, self.step) if context.rank == 0 else None
        self.watch = StopWatch(StopFile(job.output)) if context.rank == 0 else None
        self.is_asked_to_stop = False
        derived = getattr(self.engine, "deepspeed_config", None)
        if self.record is not None and derived is not None:
            self.record.json(derived, "deepspeed.json")

    def run(self) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        batches = iter(self.loader)
        with contextlib.closing(batches):  # type: ignore[type-var]
            while not self._is_over():
                gradient_norm = self._optimizer_step(batches)
                self.step += 1
                self.is_asked_to_stop = self.context.any(self.watch is not None and self.watch.reason is not None)
                measured = self._log(gradient_norm) if self._is_over() or self._is_due(self.loop.log_every) else {}
                if self.step == self.loop.steps or self._is_due(self.loop.evaluate_every):
                    measured |= self._evaluate()
                self.state.see(measured, self.step, self.loop.best_by)
                if self._is_over() or self._is_due(self.loop.checkpoint_every):
                    self._save(measured)
                metrics |= measured
        self.saver.close()
        return metrics | self._ending()

    def close(self, *, failure: str | None = None) -> None:
        for part in (self.reader, self.validation, self.watch):
            if part is not None:
                part.close()
        if self.record is not None:
            self.record.close(failure=failure)
        self.engine.close()

    def _is_over(self) -> bool:
        end = self.job.until or self.loop.steps
        return self.step >= end or self.is_asked_to_stop or self.state.is_stale(self.loop)

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _ending(self) -> dict[str, Any]:
        """How the run ended, where not by its last step; the same on every rank."""
        if self.is_asked_to_stop:
            why = next(reason for reason in self.context.gather(self.watch and self.watch.reason) if reason)
            return {"stopped": f"{why}: stopped at step {self.step} of {self.loop.steps}, with a checkpoint"}
        if self.state.is_stale(self.loop):
            return {"ended_early": self.step}
        return {}

    # --- one step ---

    def _optimizer_step(self, batches: Iterator[Batch]) -> float:
        """The gradient norm before clipping of one optimizer step."""
        self.engine.set_learning_rate(self._learning_rate(self.step))
        ids, gradient_norm = [], None
        while gradient_norm is None:
            batch = next(batches)
            self.meter.count(batch)
            if self.samples is not None:
                self.samples.add(batch)
            ids.append(batch["sample_id"])
            batch = {key: value.to(self.context.device, non_blocking=True) for key, value in batch.items()}
            loss = self.engine.forward(batch)
            self.meter.add(batch, loss, getattr(self.model, "row_losses_B", None))
            self.engine.backward(loss)
            gradient_norm = self.engine.step()
        self.state.see_norm(gradient_norm, self.step + 1, self.loop)
        if not math.isfinite(gradient_norm):
            skipped = torch.cat(ids).tolist()
            log.warning(
                "step %d is skipped, its gradient norm is %s; samples %s", self.step + 1, gradient_norm, skipped
            )
        if self.samples is not None:
            self.samples.end_step(self.step + 1)
        return gradient_norm

    def _learning_rate(self, step: int) -> float:
        return self.experiment.optimizer.lr * self.experiment.schedule.factor(step, self.loop.steps)

    def _log(self, gradient_norm: float) -> dict[str, float]:
        """One line of metrics: means over the steps since the last line and over all ranks."""
        metrics = self.meter.metrics(self.loader.waited_s)
        metrics |= {"gradient_norm": gradient_norm, "learning_rate": self._learning_rate(self.step - 1)}
        if self.loop.on_nonfinite == "skip":
            metrics["skipped_steps"] = self.state.skipped
            metrics = {key: value for key, value in metrics.items() if math.isfinite(value)}
        self._report(metrics)
        return metrics

    def _report(self, metrics: dict[str, float]) -> None:
        self.context.report(metrics | {"step": self.step})
        if self.record is not None:
            self.record.add(metrics, self.step)

    # --- validation and checkpoints ---

    def _evaluate(self) -> dict[str, float]:
        if self.validation is None:
            return {}
        began, loop = time.perf_counter(), self.loop
        sizes = {"windows": loop.evaluate_windows, "micro_batch": loop.micro_batch}
        with self.engine.evaluate_mode(averaged=self.experiment.engine.ema_decay > 0) as model:
            metrics = {"validation_loss": validation_loss(model, self.validation, self.context, **sizes)}
        self.meter.leave_out(time.perf_counter() - began)
        self._report(metrics)
        return metrics

    def _save(self, measured: dict[str, float]) -> None:
        best_by = self.loop.best_by
        metadata: dict[str, Any] = {
            "experiment": to_plain(self.experiment),
            "contract": self.contract.to_json(),
            "contract_id": self.contract.id,
            PLANS: self.plans,
            "position": self.loader.state(),
            "loop_state": self.state.to_plain(),
            "world_size": self.context.world_size,
            "git_revision": git_revision(),
            "mlflow_run_id": self.record.run_id if self.record else None,
        }
        metadata = with_references(metadata, self.references)
        if math.isfinite(measured.get(best_by, math.nan)):
            metadata[best_by] = measured[best_by]
        self.saver.save(self.step, self._snapshot(), metadata, keep_last=self.loop.keep_last, keep_best_by=best_by)
        if self.record is not None:
            self.record.publish()
            self.record.add_details({f"loader/{key}": value for key, value in self.loader.report().items()}, self.step)

    def _snapshot(self) -> Callable[[Path], None]:
        """Copies this rank's state; the returned function writes it from another thread, while training goes on."""
        write_engine, random = self.engine.snapshot(), self._random_state()

        def write(folder: Path) -> None:
            (folder / "engine").mkdir()
            write_engine(folder / "engine")
            torch.save(random, folder / f"random-{self.context.rank:05d}.pt")

        return write

    def _random_state(self) -> dict[str, torch.Tensor]:
        on_gpu = {"cuda": torch.cuda.get_rng_state(self.context.device)} if self.context.device.type == "cuda" else {}
        return {"cpu": torch.get_rng_state(), **on_gpu}

    # --- building ---

    def _build_engine(self) -> Engine:
        torch.manual_seed(self.loop.seed)
        accumulation = self.experiment.accumulation(self.context.world_size)
        engine = self.experiment.engine.build(
            self.context, micro_batch=self.loop.micro_batch, accumulation=accumulation
        )
        weights_from = self.job.init if self.found is None else None
        build_model = model_factory(self.experiment, weights_from, self.job.tracking_uri)
        self.model = engine.build(build_model, self.experiment.optimizer.build)
        torch.manual_seed(self.loop.seed + self.context.rank)
        if self.found is not None:
            self._resume(engine, self.found)
        return engine

    def _resume(self, engine: Engine, found: Checkpoint) -> None:
        require_same_run(found, self.contract, self.experiment, self.references)
        with tempfile.TemporaryDirectory(prefix="resume-") as scratch:
            context = self.context
            folder = self.folder.fetch(found, Path(scratch), rank=context.rank, world_size=context.world_size)
            engine.load(folder / "engine")
            random = folder / f"random-{self.context.rank:05d}.pt"
            if random.exists():  # a new rank of a grown run has none and keeps its fresh state
                saved = torch.load(random, weights_only=True)
                torch.set_rng_state(saved["cpu"])
                if "cuda" in saved and self.context.device.type == "cuda":
                    torch.cuda.set_rng_state(saved["cuda"], self.context.device)
