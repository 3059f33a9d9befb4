"""What `rtp evaluate --env` leaves: a table in the terminal, a JSON file, MLflow metrics, and a page with videos."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipelines.evaluation.closed_loop_report import POLICY, ClosedLoopReport, verdict
from pipelines.evaluation.closed_loop_run import ClosedLoop
from pipelines.evaluation.record import FOLDER, save, track
from pipelines.evaluation.tables import print_rows
from pipelines.reports.rollout_page import actor_rows, chosen_videos, rollout_page, success_rows
from pipelines.terminal.atomic_files import write_whole


def show(report: ClosedLoopReport) -> None:
    """Print the table, the errors and the verdicts."""
    print(
        f"{report.environment}: each task under {len(report.seeds)} seeds, {report.seeds[0]} to "
        f"{report.seeds[-1]}; at most {report.max_steps} steps at {report.control_hz:g} Hz"
    )
    print_rows(*actor_rows(report))
    print_rows(*success_rows(report))
    for name, comparison in report.compared.items():
        print(verdict(name, comparison))
    for error in report.errors[:10]:
        print(f"error: {error}")
    if len(report.errors) > 10:
        print(f"and {len(report.errors) - 10} more errors: they stand in the report")


def keep(loop: ClosedLoop, report: ClosedLoopReport, model: str, output: str | None) -> dict[str, Any]:
    """Save the report as a file and in MLflow; the account that --json prints."""
    result = {"model": model, "step": loop.trained.step, "closed_loop": report.to_json()}
    name = f"step-{loop.trained.step}-{_file_part(report)}.json"
    saved = save(result, output or f"{loop.home}/{FOLDER}/{name}", asked=output is not None)
    tracked_as = loop.trained.metadata.get("mlflow_run_id")
    run_id = track(result, metrics_of(report), home=loop.home, run_id=tracked_as, name=name)
    for line in ([f"report: {saved}"] if saved else []) + ([f"MLflow: run {run_id}"] if run_id else []):
        print(line)
    return {**result, "report": saved, "mlflow_run_id": run_id}


def metrics_of(report: ClosedLoopReport) -> dict[str, float]:
    """Success over all tasks and in each, by names that say in which simulator."""
    simulator, policy = report.environment.partition(":")[0], report.actors[POLICY]
    rates = {task: success.rate.mean for task, success in policy.tasks.items()}
    return {
        f"evaluation/{simulator}/success": policy.rate.mean,
        **{f"evaluation/{simulator}/{task}/success": rate for task, rate in rates.items()},
    }


def _file_part(report: ClosedLoopReport) -> str:
    """The same for the same tasks and seeds."""
    digest = hashlib.sha256(json.dumps([list(report.actors[POLICY].tasks), report.seeds]).encode()).hexdigest()[:8]
    return f"{report.environment.partition(':')[0]}-{digest}"


def write_page(path: str, loop: ClosedLoop, report: ClosedLoopReport, model: str) -> None:
    """The page, with some of the videos that `--video` wrote."""
    facts = {"model": model, "step": loop.trained.step, "contract": report.contract, "tasks": report.environment}
    videos = [] if loop.config.video is None else chosen_videos(report.actors[POLICY].results, loop.config.video)
    write_whole(str(Path(path).absolute()), rollout_page(f"{model} in {report.environment}", facts, report, videos))
    print(f"page: {path}")
