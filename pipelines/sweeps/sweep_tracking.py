"""A sweep in MLflow: a parent run with its report, and below it the run of every trial's training."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from pipelines.tracking.mlflow_run import TrainingRun
from pipelines.training.job import TrainJob
from pipelines.training.run_logger import known_run
from tuning.ledger import Ledger
from tuning.ranking import Point
from tuning.sweep import Sweep
from tuning.tuner import Outcome


def open_parent(job: TrainJob, name: str, params: Mapping[str, object], run_id: str | None) -> str:
    """The id of the sweep's own run: `run_id` where the server knows it. Raises ConnectionError."""
    run = _run(job, name=f"sweep {name}", params=params, run_id=run_id)
    run.tag("output", job.output)
    run.tag("sweep", name)
    return run.run_id


def close_trials(job: TrainJob, ledger: Ledger) -> None:
    """Tell the runs of trials that could not do so themselves, since they were ended, how they ended."""
    for record in ledger.ordered():
        run_id = known_run(ledger.output(record.number))
        if run_id is None or record.state in ("waiting", "finished"):
            continue
        run = _run(job, name=f"trial {record.number}", params={}, run_id=run_id)
        run.tag("trial_state", f"{record.state} {record.reason}".strip())
        failure = record.reason if record.state == "failed" else "interrupted; rtp tune --resume continues it"
        run.finish(failure=failure if record.state in ("failed", "interrupted") else None)


def publish(
    job: TrainJob, sweep: Sweep, run_id: str, files: Mapping[str, str], chosen: Point | None, outcome: Outcome
) -> None:
    """Give the sweep's run its files and what was best, and end it."""
    run = _run(job, name=f"sweep {sweep.name}", params={}, run_id=run_id)
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in files.items():
            Path(scratch, name).write_text(text)
            run.file(Path(scratch, name))
    if chosen is not None and chosen.medians is not None:
        for path, value in chosen.parameters.items():
            run.tag(f"best.{path}", str(value))
        for objective, value in zip(sweep.objectives, chosen.medians, strict=True):
            run.tag(f"best.{objective.metric}", f"{value:.6g}")
    run.finish(failure=None if outcome == "complete" else f"{outcome}; rtp tune --resume continues it")


def _run(job: TrainJob, *, name: str, params: Mapping[str, object], run_id: str | None) -> TrainingRun:
    return TrainingRun(
        uri=job.tracking_uri,
        experiment=job.experiment.tracking.experiment,
        name=name,
        params=params,
        run_id=run_id,
    )
