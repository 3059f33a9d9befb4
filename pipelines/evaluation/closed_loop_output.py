"""What `rtp evaluate --env` leaves: a table in the terminal, a JSON file, MLflow metrics, and a page with videos."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pipelines.evaluation.closed_loop_report import POLICY, ClosedLoopReport, verdict
from pipelines.evaluation.closed_loop_run import ClosedLoop
from pipelines.evaluation.record import EvaluatedModel, keep
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


def keep_report(loop: ClosedLoop, report: ClosedLoopReport, model: str, output: str | None) -> dict[str, object]:
    """Save the report as a file and in MLflow; the summary that --json prints."""
    return keep(
        EvaluatedModel.of(loop.trained, model, kind="closed_loop", scores=report.to_json()),
        metrics_of(report),
        trained=loop.trained,
        home=loop.home,
        file_name=f"step-{loop.trained.step}-{_file_part(report)}.json",
        output=output,
    )


def metrics_of(report: ClosedLoopReport) -> dict[str, float]:
    """Success, or return, over all tasks and in each, by names that say in which simulator."""
    simulator, policy = report.environment.partition(":")[0], report.actors[POLICY]
    if report.measure == "return":
        whole, by_task = policy.returns.mean, {task: each.returns.mean for task, each in policy.tasks.items()}
    else:
        whole, by_task = policy.rate.mean, {task: each.rate.mean for task, each in policy.tasks.items()}
    return {
        f"evaluation/{simulator}/{report.measure}": whole,
        **{f"evaluation/{simulator}/{task}/{report.measure}": value for task, value in by_task.items()},
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
