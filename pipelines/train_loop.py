"""The training loop: batches in, checkpoints and metrics out. It sees a WorkerContext and an Engine, never Ray.

The same function runs alone (`LocalContext` + `TorchEngine`) and as one of many ranks (`RayContext` +
`DeepSpeedEngine`). A run is determined by its Experiment and its stores: sample order, crops and learning rate are
functions of the step, so a run continued from a checkpoint is the run that was interrupted.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.background import BackgroundSaver
from cluster.context import WorkerContext
from cluster.engine import Engine
from cluster.storage import Checkpoint, CheckpointFolder
from pipelines.experiment import Experiment
from pipelines.serialization import flatten, to_plain
from pipelines.tracking import TrainingRun
from pipelines.training_data import build_loader, open_reader, training_contract
from preprocessing.episode_store import EpisodeStore
from preprocessing.loading.loader import Batch, WindowReader
from rt_models.spec import Contract


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What `train` is asked to do. `stores` and `validation` are folders of episode stores, local or remote."""

    experiment: Experiment
    stores: tuple[str, ...]
    output: str
    tracking_uri: str
    validation: tuple[str, ...] = ()
    resume: bool = False


def train(context: WorkerContext, job: TrainJob) -> dict[str, float]:
    """Train to `loop.steps`, from scratch or from the latest checkpoint of `job.output`; the last metrics logged."""
    session = _Session(context, job)
    try:
        metrics = session.run()
    except BaseException as error:
        session.close(failure=f"{type(error).__name__}: {error}")
        raise
    session.close()
    return metrics


class _Session:
    """One attempt at a run on one rank: what was opened, and the step it has reached."""

    def __init__(self, context: WorkerContext, job: TrainJob) -> None:
        self.context, self.job, self.experiment = context, job, job.experiment
        self.loop = job.experiment.loop
        stores = [EpisodeStore.open(path, split="train") for path in job.stores]
        self.contract = training_contract(self.experiment, stores)
        self.folder = CheckpointFolder(f"{job.output}/checkpoints")
        # Not only with --resume: a worker that Ray starts again after a failure goes on from here too. That a new run
        # does not begin in another one's folder is checked once, before any worker starts (pipelines/train.py).
        self.found = self.folder.latest()
        self.step = self.found.step if self.found else 0
        self.engine = self._build_engine()
        self.reader = open_reader(self.experiment, stores, self.contract)
        held_out = [EpisodeStore.open(path, split="val") for path in job.validation]
        self.validation = open_reader(self.experiment, held_out, self.contract) if held_out else None
        position = self.found.metadata["position"] if self.found else None
        self.loader = build_loader(self.experiment, self.reader, context, position)
        self.saver = BackgroundSaver(self.folder, context)
        keeps_log = context.rank == 0 and "://" not in job.output  # object stores cannot append; MLflow has it all
        self.log = _MetricsLog(job.output, self.step) if keeps_log else None
        self.run_record = self._open_tracking() if context.rank == 0 else None

    def run(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        batches = iter(self.loader)
        losses, began, waited = [], time.perf_counter(), 0.0
        with contextlib.closing(batches):  # type: ignore[type-var]
            while self.step < self.loop.steps:
                loss, gradient_norm = self._optimizer_step(batches)
                losses.append(loss)
                self.step += 1
                if self.step % self.loop.log_every == 0 or self.step == self.loop.steps:
                    seconds = time.perf_counter() - began
                    waiting = self.loader.waited_s - waited
                    metrics = self._metrics(losses, gradient_norm, seconds, waiting)
                    self._report(metrics)
                    losses, began, waited = [], time.perf_counter(), self.loader.waited_s
                metrics |= self._evaluate_if_due()
                if self.step % self.loop.checkpoint_every == 0 or self.step == self.loop.steps:
                    self._save()
        self.saver.close()
        return metrics

    def close(self, *, failure: str | None = None) -> None:
        for reader in (self.reader, self.validation):
            if reader is not None:
                reader.close()
        if self.run_record is not None:
            self.run_record.finish(failure=failure)
        self.engine.close()

    # --- one step ---

    def _optimizer_step(self, batches: Iterator[Batch]) -> tuple[torch.Tensor, float]:
        """(mean loss of this rank's micro-batches, gradient norm before clipping) of one optimizer step."""
        schedule, optimizer = self.experiment.schedule, self.experiment.optimizer
        self.engine.set_learning_rate(optimizer.lr * schedule.factor(self.step, self.loop.steps))
        losses, gradient_norm = [], None
        while gradient_norm is None:
            batch = {key: value.to(self.context.device, non_blocking=True) for key, value in next(batches).items()}
            loss = self.engine.forward(batch)
            self.engine.backward(loss)
            gradient_norm = self.engine.step()
            losses.append(loss.detach())
        if not math.isfinite(gradient_norm):
            raise FloatingPointError(
                f"the gradient norm is {gradient_norm} at step {self.step + 1} (loss {float(losses[-1])}): lower "
                f"optimizer.lr or look at the data with rtp inspect; the last checkpoint is still good"
            )
        return torch.stack(losses).mean(), gradient_norm

    def _metrics(
        self, losses: list[torch.Tensor], gradient_norm: float, seconds: float, waited_s: float
    ) -> dict[str, float]:
        """Means over the steps since the last line and over all ranks."""
        mine = (float(torch.stack(losses).float().mean()), waited_s / seconds)
        loss, waiting = np.mean(self.context.gather(mine), axis=0)
        windows = len(losses) * self.loop.global_batch / seconds
        rate = self.experiment.optimizer.lr * self.experiment.schedule.factor(self.step - 1, self.loop.steps)
        return {
            "loss": float(loss),
            "gradient_norm": gradient_norm,
            "learning_rate": rate,
            "windows_per_s": windows,
            "waiting_share": float(waiting),
        }

    def _report(self, metrics: dict[str, float]) -> None:
        self.context.report(metrics | {"step": self.step})
        if self.log is not None:
            self.log.append(self.step, metrics)
        if self.run_record is not None:
            self.run_record.metrics(metrics, self.step)

    # --- validation and checkpoints ---

    def _evaluate_if_due(self) -> dict[str, float]:
        every = self.loop.evaluate_every
        due = self.step == self.loop.steps or (every and self.step % every == 0)
        if self.validation is None or not due:
            return {}
        metrics = {"validation_loss": self._validation_loss(self.validation)}
        self._report(metrics)
        return metrics

    def _validation_loss(self, reader: WindowReader) -> float:
        """Mean loss without crops over evenly spread windows of the validation stores, shared among the ranks."""
        count = min(self.loop.evaluate_windows, reader.index.num_rows)
        rows = np.unique(np.linspace(0, reader.index.num_rows - 1, count).astype(np.int64))
        per_rank = -(-len(rows) // self.context.world_size)  # equal shares: every rank takes part in every forward
        mine = np.resize(rows, per_rank * self.context.world_size)[self.context.rank :: self.context.world_size]
        total = 0.0
        with self.engine.evaluate_mode() as model:
            for first in range(0, len(mine), self.loop.micro_batch):
                self.context.beat()
                piece = mine[first : first + self.loop.micro_batch]
                batch = {k: v.to(self.context.device) for k, v in reader.read(piece, piece).items()}
                total += float(model.loss(batch)) * len(piece)
        return float(np.mean(self.context.gather(total / len(mine))))

    def _save(self) -> None:
        metadata = {
            "experiment": to_plain(self.experiment),
            "contract": self.contract.to_json(),
            "contract_id": self.contract.id,
            "position": self.loader.state(),
            "world_size": self.context.world_size,
            "git_revision": git_revision(),
            "stores": list(self.job.stores),
            "mlflow_run_id": self.run_record.run_id if self.run_record else None,
        }
        self.saver.save(self.step, self._snapshot(), metadata, keep_last=self.loop.keep_last)

    def _snapshot(self) -> Callable[[Path], None]:
        """Copies this rank's state; the returned function writes it from another thread, while training goes on."""
        write_engine, random = self.engine.snapshot(), {"cpu": torch.get_rng_state()}

        def write(folder: Path) -> None:
            (folder / "engine").mkdir()
            write_engine(folder / "engine")
            torch.save(random, folder / f"random-{self.context.rank:05d}.pt")

        return write

    # --- building ---

    def _build_engine(self) -> Engine:
        torch.manual_seed(self.loop.seed)
        accumulation = self.experiment.accumulation(self.context.world_size)
        engine = self.experiment.engine.build(
            self.context, micro_batch=self.loop.micro_batch, accumulation=accumulation
        )
        engine.build(self.experiment.model.build, self.experiment.optimizer.build)
        torch.manual_seed(self.loop.seed + self.context.rank)
        if self.found is not None:
            self._resume(engine, self.found)
        return engine

    def _resume(self, engine: Engine, found: Checkpoint) -> None:
        require_same_run(found, self.contract, self.experiment)
        with tempfile.TemporaryDirectory(prefix="resume-") as scratch:
            folder = self.folder.fetch(found, Path(scratch))
            engine.load(folder / "engine")
            random = folder / f"random-{self.context.rank:05d}.pt"
            if random.exists():  # a new rank of a grown run has none and keeps its fresh state
                torch.set_rng_state(torch.load(random, weights_only=True)["cpu"])

    def _open_tracking(self) -> TrainingRun:
        run = TrainingRun(
            uri=self.job.tracking_uri,
            experiment=self.experiment.tracking.experiment,
            name=self.experiment.name,
            params=flatten(to_plain(self.experiment)),
            run_id=self.found.metadata["mlflow_run_id"] if self.found else None,
        )
        run.tag("contract", self.contract.id)
        run.tag("stores", ", ".join(self.job.stores))
        run.json(self.contract.to_json(), "contract.json")
        run.json(to_plain(self.experiment), "experiment.json")
        return run


class _MetricsLog:
    """metrics.jsonl of a run: one line a report; lines after the step resumed from are dropped."""

    def __init__(self, output: str, resumed_step: int) -> None:
        self._path = Path(output) / "metrics.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(self._path) if line["step"] <= resumed_step] if resumed_step else []
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **metrics}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a line cut by a crash is left out."""
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0].splitlines()
    return [json.loads(line) for line in whole]


def git_revision() -> str:
    """The revision of the code, with "+changes" where it differs from what is committed; "unknown" outside git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+changes"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def require_same_run(found: Checkpoint, contract: Contract, experiment: Experiment) -> None:
    """Raise ValueError where continuing would silently train something else."""
    theirs = Contract.from_json(found.metadata["contract"])
    if theirs != contract:
        raise ValueError(
            f"checkpoint {found.path} was trained under contract {theirs.id}, this run has {contract.id}: "
            f"give the stores and settings of that run, or another --output"
        )
    before = flatten(found.metadata["experiment"])
    now = flatten(to_plain(replace(experiment)))
    fixed = [
        key
        for key in now
        if key.startswith(("model.", "loop.seed", "loop.lanes", "loop.global_batch", "loop.segment_windows"))
    ]
    changed = [key for key in fixed if before.get(key) != now[key]]
    if changed:
        key = changed[0]
        raise ValueError(
            f"--resume continues the run in {found.path}, but {key} was {before.get(key)} and is now {now[key]}: "
            f"leave it as it was, or give another --output"
        )
