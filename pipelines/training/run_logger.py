"""The record of a run, kept by rank 0: metrics.jsonl, the MLflow run and, on request, Weights & Biases."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import yaml

from pipelines.config.serialization import flatten, to_plain
from pipelines.terminal.atomic_files import write_whole
from pipelines.tracking.mlflow_run import RunMetrics, TrainingRun
from pipelines.tracking.wandb_run import WandbRun
from pipelines.training.run_files import METRICS, MetricsLog
from pipelines.training.speed import system_metrics
from rt_models.spec import Contract

if TYPE_CHECKING:
    from pipelines.training.job import TrainJob

log = logging.getLogger(__name__)

_SYSTEM_EVERY_S = 10.0
_RUN = "run.json"  # in the output folder: which MLflow run this is, also before the first checkpoint


def open_run(job: TrainJob, contract: Contract) -> TrainingRun:
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
    run.tag("contract", contract.id)
    run.tag("stores", ", ".join(job.stores))
    run.tag("output", job.output)
    for key, value in job.tags.items():
        run.tag(key, value)
    run.json(contract.to_json(), "contract.json")
    run.json(to_plain(job.experiment), "experiment.json")
    write_whole(f"{job.output}/{_RUN}", json.dumps({"mlflow_run_id": run.run_id, "uri": run.uri}))
    return run


def run_name(job: TrainJob) -> str:
    """What a table of runs shows: two trainings of a recipe are told apart by their output folders."""
    folder = job.output.rstrip("/").rpartition("/")[2]
    return job.experiment.name if folder in ("", job.experiment.name) else f"{job.experiment.name} {folder}"


def known_run(output: str) -> str | None:
    """The id of the MLflow run that an earlier attempt opened. Raises ValueError where its file is not ours."""
    files, root = fsspec.core.url_to_fs(output)
    try:
        return str(json.loads(files.cat_file(f"{root}/{_RUN}"))["mlflow_run_id"])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        remedy = "remove it, and the training goes on under a new one"
        raise ValueError(f"{output}/{_RUN} names no MLflow run: {remedy}") from error


def finish_run(run: TrainingRun, output: str, *, failure: str | None = None) -> None:
    """End the run with what the output folder holds of it."""
    files, root = fsspec.core.url_to_fs(output)
    for name in ("experiment.yaml", METRICS):
        if files.exists(f"{root}/{name}"):
            with tempfile.TemporaryDirectory() as scratch:
                files.get_file(f"{root}/{name}", f"{scratch}/{name}")
                run.file(Path(scratch, name))
    run.finish(failure=failure)


def write_config(job: TrainJob) -> None:
    """The resolved experiment beside the checkpoints, in the form that --config reads."""
    write_whole(f"{job.output}/experiment.yaml", yaml.safe_dump(to_plain(job.experiment), sort_keys=False))


class RunRecord:
    """Opened by rank 0 of every attempt. `job.run_id` None: the MLflow run is opened, and ended, here too."""

    def __init__(self, job: TrainJob, contract: Contract, resumed_step: int) -> None:
        self._output, self._own = job.output, None
        if job.run_id is None:
            self._own = open_run(job, contract)
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
        """For MLflow alone."""
        self._mlflow.add(metrics, step)

    def _system_metrics(self) -> dict[str, float]:
        """Now and then: they tell of the machine, not of the step."""
        now = time.monotonic()
        if now < self._next_system_s:
            return {}
        self._next_system_s = now + _SYSTEM_EVERY_S
        return system_metrics(self._output)

    def json(self, data: Any, name: str) -> None:
        """Store `data` as the run's artifact `name`."""
        self._mlflow.json(data, name)

    def publish(self) -> None:
        """At every checkpoint: what an object store cannot have line by line."""
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
