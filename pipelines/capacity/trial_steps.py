"""`rtp doctor RECIPE --data STORE --measure`: a few real steps in this process, and what the whole run would take.

One worker's share of every batch is trained on, with the threads that a worker has, without Ray and with plain PyTorch
in DeepSpeed's place. What workers wait for each other, validation and checkpoints are not in the time.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from cluster.context import LocalContext
from cluster.engine import DeepSpeedEngineConfig, TorchEngineConfig
from cluster.launch import RayLaunch
from pipelines.config.compute import num_threads
from pipelines.config.experiment import Experiment, InProcess
from pipelines.training.job import TrainJob
from pipelines.training.run_files import METRICS, read_metrics

STEPS = 6
_WARM_UP = 2  # the first steps allocate, and read what later ones find in memory


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one worker; `peak_bytes` of this process, or of the GPU's memory."""

    steps: int
    step_s: float
    samples_per_s: float
    peak_bytes: int
    waiting_share: float
    run_s: float
    """The whole run with the most workers, each at this pace where they do not have to share cores."""

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def measure(
    experiment: Experiment,
    stores: Sequence[str],
    train: Callable[[LocalContext, TrainJob], object],
    *,
    steps: int = STEPS,
) -> Measured:
    """Run `train`, the training loop, for `steps` steps of the resolved experiment; leaves nothing behind."""
    sizes = experiment.launch.sizes
    threads, workers = _threads(experiment), sizes[-1]
    with tempfile.TemporaryDirectory(prefix="rtp-measure-") as folder, num_threads(threads):
        job = TrainJob(
            experiment=of_one_worker(experiment, workers, steps),
            stores=tuple(stores),
            output=f"{folder}/run",
            tracking_uri=f"sqlite:///{folder}/mlflow.db",
            until=steps,
        )
        Path(job.output).mkdir()
        train(LocalContext(), job)
        lines = [line for line in read_metrics(f"{job.output}/{METRICS}") if "samples_per_s" in line]
    timed = lines[_WARM_UP:] or lines
    pace = statistics.median(line["samples_per_s"] for line in timed)
    step_s = job.experiment.loop.global_batch / pace
    shared = max(1.0, workers * (threads or 1) / _cores()) if threads is not None else 1.0
    return Measured(
        steps=len(lines),
        step_s=step_s,
        samples_per_s=pace,
        peak_bytes=int(max(line["memory_gb"] for line in lines) * 1e9),
        waiting_share=statistics.median(line["waiting_share"] for line in timed),
        run_s=step_s * shared * experiment.loop.steps,
    )


def of_one_worker(experiment: Experiment, workers: int, steps: int = STEPS) -> Experiment:
    """Its share of every batch, in this process with plain PyTorch."""
    loop, engine = experiment.loop, experiment.engine
    if isinstance(engine, DeepSpeedEngineConfig):
        names = {field.name for field in fields(engine)} & {field.name for field in fields(TorchEngineConfig)}
        shared = {name: getattr(engine, name) for name in names}
        engine = TorchEngineConfig(**shared)
    loop = replace(
        loop,
        steps=max(loop.steps, steps),
        global_batch=loop.global_batch // workers,
        log_every=1,
        checkpoint_every=loop.steps + steps,
        evaluate_every=0,
        patience=0,
        log_samples=False,
    )
    tracking = replace(experiment.tracking, wandb_project=None)
    return replace(experiment, launch=InProcess(), engine=engine, loop=loop, tracking=tracking)


def _threads(experiment: Experiment) -> int | None:
    """Of one worker; None if it takes all that there are."""
    return experiment.launch.cpus_per_worker if isinstance(experiment.launch, RayLaunch) else None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
