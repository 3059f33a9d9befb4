"""A trial of a sweep is a training: the recipe's experiment with the trial's parameters, in a folder of its own.

Ray Tune runs trials in processes of their own, alone (`InProcess`) or as a Ray Train job with DeepSpeed (`RayLaunch`).
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cluster import object_store
from cluster.context import LocalContext
from cluster.launch import RayLaunch
from cluster.manifest import MANIFEST, Manifest
from cluster.object_store import open_files
from cluster.storage import CheckpointFolder
from pipelines.config.experiment import Experiment, InProcess
from pipelines.config.serialization import from_plain
from pipelines.evaluation.comparison import require_comparable
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.scoring import score
from pipelines.publishing.trained_model import load_trained
from pipelines.sweeps.simulated import SIMULATED, SimulatedScore, check_simulated
from pipelines.tracking.mlflow_run import RunMetrics, knows_run
from pipelines.training.checkpoint_metadata import CheckpointMetadata
from pipelines.training.checks import check_job
from pipelines.training.initial_weights import FIXED
from pipelines.training.job import PreparedJob, TrainJob
from pipelines.training.preparation import prepared
from pipelines.training.result import TrainingResult
from pipelines.training.run_logger import known_run
from pipelines.training.step_metrics import require_reported
from preprocessing.store import file_system
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import WebStore, open_store
from tuning.population import Population
from tuning.space import Parameters, Space
from tuning.sweep import Asha, Sweep, ToTheEnd
from tuning.tuner import Report, TrialTask

if TYPE_CHECKING:
    from ray.train import UserCallback

# Objectives that an evaluation after the training measures, those in a simulator last.
SCORES = {"token_accuracy", "scaled_error", "vqa_accuracy", *SIMULATED}

RunTraining = Callable[..., TrainingResult]  # pipelines.train.run_training


@dataclass(frozen=True, kw_only=True)
class TrainingTrial:
    """job: of the whole sweep, its experiment without the parameters of any trial. tags: of the trials' MLflow runs.

    run: what runs a training (`pipelines.train.run_training`).
    scores: whether to evaluate the trained model on the validation stores, for objectives that only that measures.
    simulated: where the trained model acts, for objectives that a simulator measures.
    """

    job: TrainJob
    run: RunTraining
    scores: bool = False
    simulated: SimulatedScore | None = None
    accepted: tuple[str, ...] = ()
    tags: Mapping[str, str]

    def __call__(self, task: TrialTask, report: Report) -> dict[str, float]:
        object_store.wait_from_the_start()
        file_system.wait_from_the_start()
        _require_shared(self.job, self.tags.get("mlflow.parentRunId"))
        tags = {"mlflow.runName": f"trial {task.number}", "trial": str(task.number), **self.tags}
        job = replace(
            self.job,
            experiment=with_parameters(self.job.experiment, {**task.parameters, "loop.seed": task.seed}),
            output=task.output,
            resume=True,
            until=task.until,
            tags=tags,
        )
        alone = isinstance(job.experiment.launch, InProcess)
        context, callbacks = (_ReportingContext(report), ()) if alone else (None, _reporting_callbacks())
        # A trial of a sweep that was killed may still be dying when the sweep is resumed.
        result = self.run(job, accepted=self.accepted, context=context, callbacks=callbacks, patience_s=60)
        if result.stopped is not None:
            raise RuntimeError(f"{result.stopped}; rtp tune --resume --retry-failed continues it")
        metrics = {key: value for key, value in result.metrics.items() if isinstance(value, float)}
        return {**metrics, **(_scored(job, self.simulated) if self.scores else {}), "step": result.steps}


def _require_shared(job: TrainJob, parent: str | None) -> None:
    """Raise ValueError unless this node sees what the sweep's command has written: its folder and its MLflow run."""
    files, root = open_files(job.output)
    if not files.exists(f"{root}/sweep.json"):
        raise ValueError(
            f"the node {socket.gethostname()} does not find the sweep in {job.output}: every node must see the same "
            f"--output, so give a folder on a shared disk or a URL such as s3://BUCKET/SWEEP"
        )
    if parent is not None and not knows_run(job.tracking_uri, parent):
        raise ValueError(
            f"the node {socket.gethostname()} does not find the sweep's MLflow run in {job.tracking_uri}: start a "
            f"server (mlflow server) that every node reaches and set MLFLOW_TRACKING_URI=http://HOST:5000"
        )


def scores(job: TrainJob, simulated: SimulatedScore | None) -> dict[str, float]:
    """The headline scores of the trained model on the validation stores, means over stores of a kind, and its success
    in a simulator; in MLflow too."""
    config = EvaluationConfig(bootstrap_samples=100, perturbations=False)
    by_metric: dict[str, list[float]] = {}
    trained = load_trained(job.output, device=config.compute.resolved())
    for path in job.validation:
        report = score(trained, open_store(path, split="val"), config)
        for name, interval in report.headlines().items():
            if name in SCORES:
                by_metric.setdefault(name, []).append(interval.mean)
    means = {name: float(np.mean(values)) for name, values in by_metric.items()}
    if simulated is not None:
        means |= simulated.of(job.output)
    record = RunMetrics(uri=job.tracking_uri, run_id=known_run(job.output) or "", output=job.output)
    record.add(means, trained.step)
    record.close()
    return means


def _scored(job: TrainJob, simulated: SimulatedScore | None) -> dict[str, float]:
    """The scores, computed where the training ran: a trial whose Ray workers had the GPUs asks for one of its own."""
    launch = job.experiment.launch
    if not (isinstance(launch, RayLaunch) and launch.use_gpu):
        return scores(job, simulated)
    import ray

    with_a_gpu = ray.remote(num_cpus=0, num_gpus=1, scheduling_strategy="DEFAULT")  # not of what the trial reserves
    return ray.get(with_a_gpu(scores).remote(job, simulated))


class _ReportingContext(LocalContext):
    """Hands every report to the sweep, and does not come back from there once the trial is stopped early."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report

    def report(self, metrics: Mapping[str, float]) -> None:
        super().report(metrics)
        try:
            self._report(metrics)
        except SystemExit:  # how Ray Tune ends the thread of a trial
            raise SystemExit("the sweep stopped this trial early") from None


def _reporting_callbacks() -> tuple[UserCallback, ...]:
    from ray.tune.integration.ray_train import TuneReportCallback

    return (TuneReportCallback(),)


def with_parameters(experiment: Experiment, parameters: Parameters) -> Experiment:
    """`experiment` with {dotted path: value} laid over it. Raises ValueError for what it does not take."""
    nested: dict[str, object] = {}
    for path, value in sorted(parameters.items()):  # a whole part, such as optimizer, before a setting of it
        *parents, name = path.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ValueError(f"{path}: {path.removesuffix(f'.{name}')} is set to {place!r}, which has no settings")
        place[name] = deepcopy(value)  # the sweep's own value must not take up the settings laid over it
    return from_plain(Experiment, nested, base=experiment)


def check_sweep(sweep: Sweep, job: TrainJob, accepted: Collection[str] = ()) -> None:
    """Raise ValueError for what can be known to go wrong before any trial starts: space, schedule, stores."""
    experiment = job.experiment
    _check_space(sweep.space, experiment)
    _check_comparable(sweep, experiment)
    if isinstance(sweep.scheduler, Population):
        fixed = [path for path in sweep.space if path.startswith(FIXED)]
        if fixed:
            raise ValueError(f"{fixed[0]} cannot change in the middle of a training, and Population does that")
        if experiment.loop.patience:
            raise ValueError("loop.patience ends trainings early, and a Population waits for all of them: set it to 0")
    if isinstance(sweep.scheduler, Asha) and sweep.scheduler.grace_steps >= experiment.loop.steps:
        raise ValueError(
            f"scheduler.grace_steps is {sweep.scheduler.grace_steps} and loop.steps {experiment.loop.steps}: no trial "
            f"could be stopped early; lower it, or choose --scheduler ToTheEnd"
        )
    for objective in sweep.objectives:
        if objective.metric in SCORES:
            _check_scores(sweep, objective.metric, job)
            continue
        require_reported(objective.metric, f"sweep {sweep.name}")
        if objective.metric == "validation_loss":
            _check_validation(sweep, experiment, job)
        elif isinstance(sweep.scheduler, Asha) and objective.metric == "loss":
            _require_divides(experiment.loop.log_every, sweep.scheduler.grace_steps, "log_every", "grace_steps")
    check_simulated(sweep, _checked_stores(sweep.space, job, accepted).contract)


def _check_space(space: Space, experiment: Experiment) -> None:
    for path, dimension in space.items():
        if path in ("loop.seed", "loop.steps", "name"):
            raise ValueError(f"a sweep does not vary {path}: seeds and steps are settings of the sweep itself")
        for value in dimension.extremes():
            changed = with_parameters(experiment, {path: value})
            changed.require_sizes()


def _check_comparable(sweep: Sweep, experiment: Experiment) -> None:
    """Raise ValueError if a setting that is varied changes what an objective counts."""
    for path, dimension in sweep.space.items():
        variants = [with_parameters(experiment, {path: value}) for value in dimension.extremes()]
        for objective in sweep.objectives:
            require_comparable(objective.metric, path, variants, sweep=sweep.name)


def _checked_stores(space: Space, job: TrainJob, accepted: Collection[str]) -> PreparedJob:
    """The training of one point of the space, once the checks of a training have found nothing."""
    experiment = with_parameters(job.experiment, {path: dimension.extremes()[0] for path, dimension in space.items()})
    stores = [open_store(path, split="train") for path in job.stores]
    ready = prepared(replace(job, experiment=experiment), stores)
    check_job(ready, stores, accepted)
    return ready


def _check_scores(sweep: Sweep, metric: str, job: TrainJob) -> None:
    if not isinstance(sweep.scheduler, ToTheEnd):
        raise ValueError(f"{metric} is measured once, after a training, so its sweep needs the scheduler ToTheEnd")
    if metric in SIMULATED:
        return
    kinds = {type(open_store(path, split="val")) for path in job.validation}
    wanted = WebStore if metric == "vqa_accuracy" else EpisodeStore
    if wanted not in kinds:
        what = "robot episodes" if wanted is EpisodeStore else "image-text examples"
        raise ValueError(f"sweep {sweep.name} compares {metric}: give --validation a store of {what}")


def _check_validation(sweep: Sweep, experiment: Experiment, job: TrainJob) -> None:
    if not job.validation:
        raise ValueError(f"sweep {sweep.name} compares validation_loss: give --validation STORE")
    every = experiment.loop.evaluate_every
    if isinstance(sweep.scheduler, Asha):
        _require_divides(every, sweep.scheduler.grace_steps, "evaluate_every", "grace_steps")
    if isinstance(sweep.scheduler, Population):
        _require_divides(every, sweep.scheduler.interval_steps, "evaluate_every", "interval_steps")


def _require_divides(every: int, steps: int, setting: str, of_scheduler: str) -> None:
    if every < 1 or steps % every:
        raise ValueError(
            f"scheduler.{of_scheduler} is {steps} and loop.{setting} {every}: trials are compared where they report, "
            f"so choose a multiple of loop.{setting}"
        )


def clone_checkpoint(source: str, target: str, step: int) -> str:
    """Population-based training: the checkpoint of `step` in the run `source` becomes the newest, and only, one of the
    run `target`; its path. The taker keeps its own MLflow run, and the manifest says whose weights these are.

    Raises FileNotFoundError if the donor has no such checkpoint.
    """
    folder = CheckpointFolder(f"{source}/checkpoints")
    donor = folder.at(step)
    if donor is None:
        raise FileNotFoundError(f"{source} has no complete checkpoint of step {step} to take over")
    metadata = replace(CheckpointMetadata.of(donor), cloned_from=donor.path, mlflow_run_id=known_run(target))
    manifest = Manifest(step=step, metadata=metadata.to_json(), files=donor.manifest.files)
    files, root = open_files(f"{target}/checkpoints")
    with tempfile.TemporaryDirectory(prefix="clone-") as scratch:
        copied = folder.fetch(donor, Path(scratch))
        if files.exists(root):  # the taker's own weights are given up
            files.rm(root, recursive=True)
        place = f"{root}/{Path(copied).name}"
        for entry in donor.manifest.files:
            files.makedirs(f"{place}/{entry.name}".rpartition("/")[0], exist_ok=True)
            files.put_file(str(copied / entry.name), f"{place}/{entry.name}")
        files.pipe_file(f"{place}/{MANIFEST}", manifest.to_bytes())  # last: with it the checkpoint is complete
    return donor.path
