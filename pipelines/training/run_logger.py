"""Where the metrics of a run go: to its launcher, and on rank 0 to metrics.jsonl, MLflow and, on request, to W&B."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import yaml

from cluster.context import WorkerContext
from cluster.object_store import open_files
from pipelines.config.serialization import flatten, to_plain
from pipelines.terminal.atomic_files import write_whole
from pipelines.tracking.mlflow_run import RunMetrics, TrainingRun
from pipelines.tracking.wandb_run import WandbRun
from pipelines.training.job import PreparedJob, TrainJob
from pipelines.training.run_files import METRICS, MetricsLog
from pipelines.training.speed import system_metrics

log = logging.getLogger(__name__)

_SYSTEM_EVERY_S = 10.0
_RUN = "run.json"  # in the output folder: which MLflow run this is, also before the first checkpoint


def open_run(job: PreparedJob) -> TrainingRun:
    """The MLflow run of this training: the one it had, where it is resumed. Raises ConnectionError.

    With parameters, contract and configuration.
    """
    run = TrainingRun(
        uri=job.tracking_uri,
        experiment=job.experiment.tracking.experiment,
        name=run_name(job),
        params=flatten(to_plain(job.experiment)),
        run_id=known_run(job.output) if job.resume else None,
    )
    run.tag("contract", job.contract.id)
    run.tag("stores", ", ".join(job.stores))
    run.tag("output", job.output)
    for key, value in job.tags.items():
        run.tag(key, value)
    run.json(job.contract.to_json(), "contract.json")
    run.json(to_plain(job.experiment), "experiment.json")
    write_whole(f"{job.output}/{_RUN}", json.dumps({"mlflow_run_id": run.run_id, "uri": run.uri}))
    return run


def run_name(job: TrainJob) -> str:
    """The name in a table of runs; the output folder distinguishes two trainings of one recipe."""
    folder = job.output.rstrip("/").rpartition("/")[2]
    return job.experiment.name if folder in ("", job.experiment.name) else f"{job.experiment.name} {folder}"


def known_run(output: str) -> str | None:
    """The id of the MLflow run that an earlier attempt opened. Raises ValueError if its file is not ours."""
    files, root = open_files(output)
    try:
        return str(json.loads(files.cat_file(f"{root}/{_RUN}"))["mlflow_run_id"])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        remedy = "remove it, and the training goes on under a new one"
        raise ValueError(f"{output}/{_RUN} names no MLflow run: {remedy}") from error


def finish_run(run: TrainingRun, output: str, *, failure: str | None = None) -> None:
    """End the run with what the output folder holds of it."""
    files, root = open_files(output)
    for name in ("experiment.yaml", METRICS):
        if files.exists(f"{root}/{name}"):
            with tempfile.TemporaryDirectory() as scratch:
                files.get_file(f"{root}/{name}", f"{scratch}/{name}")
                run.file(Path(scratch, name))
    run.finish(failure=failure)


def write_config(job: TrainJob) -> None:
    """The resolved experiment beside the checkpoints, in the form that --config reads."""
    write_whole(f"{job.output}/experiment.yaml", yaml.safe_dump(to_plain(job.experiment), sort_keys=False))


class RunLogger:
    """Every rank has one; rank 0's keeps the record of the run. `stopped`: why the run ended early, if it did.

    An error that ends the `with` block is recorded as the reason too.
    """

    def __init__(self, context: WorkerContext, job: PreparedJob, resumed_step: int) -> None:
        self._context = context
        self._record = _RunRecord(job, resumed_step) if context.rank == 0 else None
        self.stopped: str | None = None

    @property
    def mlflow_run_id(self) -> str | None:
        """Known on rank 0."""
        return None if self._record is None else self._record.run_id

    def report(self, metrics: Mapping[str, float], step: int) -> None:
        self._context.report({**metrics, "step": step})
        if self._record is not None:
            self._record.add(metrics, step)

    def file(self, data: Mapping[str, object], name: str) -> None:
        """Plain data as the MLflow run's artifact `name`."""
        if self._record is not None:
            self._record.json(data, name)

    def checkpointed(self, details: Mapping[str, float], step: int) -> None:
        """At every checkpoint: `details` for MLflow alone, and what an object store cannot have line by line."""
        if self._record is not None:
            self._record.publish()
            self._record.add_details(details, step)

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._record is not None:
            self._record.close(failure=self.stopped if error is None else f"{type(error).__name__}: {error}")


class _RunRecord:
    """Opened by rank 0 of every attempt. `job.run_id` None: the MLflow run is opened, and ended, here too."""

    def __init__(self, job: PreparedJob, resumed_step: int) -> None:
        self._output, self._own = job.output, None
        if job.run_id is None:
            self._own = open_run(job)
        self.run_id = job.run_id or self._own.run_id  # type: ignore[union-attr]
        self._log = MetricsLog(job.output, resumed_step)
        self._mlflow = RunMetrics(uri=job.tracking_uri, run_id=self.run_id, output=job.output)
        self._wandb = _wandb(job, self.run_id)
        self._next_system_s = 0.0

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        self._log.append(step, metrics)
        self._mlflow.add({**metrics, **self._system_metrics()}, step)
        if self._wandb is not None:
            self._wandb.add(metrics, step)

    def add_details(self, metrics: Mapping[str, float], step: int) -> None:
        self._mlflow.add(metrics, step)

    def _system_metrics(self) -> dict[str, float]:
        """Every 10 seconds: they describe the machine, not the step."""
        now = time.monotonic()
        if now < self._next_system_s:
            return {}
        self._next_system_s = now + _SYSTEM_EVERY_S
        return system_metrics(self._output)

    def json(self, data: Mapping[str, object], name: str) -> None:
        self._mlflow.json(data, name)

    def publish(self) -> None:
        self._log.publish()

    def close(self, *, failure: str | None) -> None:
        self._log.publish()
        self._mlflow.close()
        if self._wandb is not None:
            self._wandb.close(failed=failure is not None)
        if self._own is not None:
            finish_run(self._own, self._output, failure=failure)


def _wandb(job: TrainJob, run_id: str) -> WandbRun | None:
    project = job.experiment.tracking.wandb_project
    if project is None:
        return None
    folder = tempfile.gettempdir() if "://" in job.output else job.output
    params = flatten(to_plain(job.experiment))
    return WandbRun(project=project, name=run_name(job), run_id=run_id, params=params, folder=folder)
