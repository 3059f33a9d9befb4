"""The HTML page about closed-loop episodes: success by task and actor, verdicts, videos of successes and failures."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.evaluation.closed_loop import EpisodeResult
from pipelines.evaluation.closed_loop_report import POLICY, ActorReport, ClosedLoopReport, TaskSuccess, verdict
from pipelines.evaluation.statistics import Interval
from pipelines.reports import html_page
from pipelines.reports.video import video_name
from preprocessing.simulation.environment import Measure

_SHOWN = 2  # successes, and as many failures, of each task
_STYLE = """
.rollouts { display: flex; flex-wrap: wrap; gap: 1rem } .rollouts figure { margin: 0; max-width: 100% }
.rollouts video { max-width: 100%; height: auto; background: #1b1f24 } figcaption { color: #57606a; font-size: 13px }
.wide { overflow-x: auto }
"""


def actor_rows(report: ClosedLoopReport) -> tuple[list[str], list[list[str]]]:
    """(head, rows): the success, or return, of every actor over all tasks."""
    rows = [[name, _whole(report, actor)] for name, actor in report.actors.items()]
    return ["", f"{report.measure} over all tasks"], rows


def success_rows(report: ClosedLoopReport) -> tuple[list[str], list[list[str]]]:
    """(head, rows): for each task the policy's rate or return with its interval, and successes of episodes or the mean
    return of every actor, by the first word of its name."""
    others = [name for name in report.actors if name != POLICY]
    rows = []
    for task, success in report.actors[POLICY].tasks.items():
        cells = [report.actors[name].tasks.get(task) for name in others]
        if report.measure == "return":
            means = ["" if cell is None else f"{cell.returns.mean:.0f}" for cell in cells]
            rows.append([task, _return(success.returns), *means])
            continue
        counts = ["" if cell is None else _count(cell) for cell in cells]
        rows.append([task, f"{_count(success)}  {_rate(success.rate)}", *counts])
    return ["", POLICY, *(name.removeprefix("policy with ").split()[0] for name in others)], rows


def _whole(report: ClosedLoopReport, actor: ActorReport) -> str:
    return _rate(actor.rate) if report.measure == "success" else _return(actor.returns)


def _return(returns: Interval) -> str:
    return f"{returns.mean:.0f} [{returns.low:.0f}, {returns.high:.0f}]"


def _count(success: TaskSuccess) -> str:
    return f"{success.successes}/{success.episodes}"


def _rate(rate: Interval) -> str:
    return f"{100 * rate.mean:.0f} % [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def policy_rows(report: ClosedLoopReport) -> tuple[list[str], list[list[str]]]:
    """(head, rows): how the policy's episodes went in each task."""
    if report.measure == "return":
        tasks = report.actors[POLICY].tasks.items()
        rows = [[task, str(each.episodes), str(each.terminated), str(each.errors)] for task, each in tasks]
        return ["task", "episodes", "ended by the policy", "errors"], rows
    rows = []
    for task, success in report.actors[POLICY].tasks.items():
        steps = "" if success.mean_steps_to_success is None else f"{success.mean_steps_to_success:.1f}"
        rows.append([task, steps, f"{success.mean_reward:.2f}", str(success.terminated), str(success.errors)])
    return ["task", "mean steps to success", "mean reward", "ended by the policy", "errors"], rows


def rollout_page(
    title: str,
    summary: Mapping[str, object],
    report: ClosedLoopReport,
    videos: Sequence[tuple[EpisodeResult, Path]],
) -> str:
    """The page; the videos are put into it."""
    sections = [
        html_page.table(["", ""], list(summary.items())),
        html_page.heading(report.measure.capitalize()),
        html_page.table(*actor_rows(report)),
        f'<div class="wide">{html_page.table(*success_rows(report))}</div>',
        *(html_page.note(definition) for definition in report.definitions),
        *(html_page.note(verdict(name, comparison)) for name, comparison in report.compared.items()),
        html_page.heading("The policy's episodes"),
        f'<div class="wide">{html_page.table(*policy_rows(report))}</div>',
        *(html_page.note(f"error: {error}") for error in report.errors),
        html_page.heading("Videos"),
        _figures(videos, report.measure) or html_page.note("none were kept: give --video DIR"),
    ]
    return html_page.page(title, sections, style=_STYLE)


def rollout_section(report: ClosedLoopReport, videos: Sequence[tuple[EpisodeResult, Path]]) -> str:
    """For a page about something else: the table by task and the videos."""
    return f'<div class="wide">{html_page.table(*success_rows(report))}</div>{_figures(videos, report.measure)}'


def chosen_videos(results: Sequence[EpisodeResult], folder: Path) -> list[tuple[EpisodeResult, Path]]:
    """The first successes and the first failures of each task that have a video in `folder`."""
    chosen: list[tuple[EpisodeResult, Path]] = []
    counts: dict[tuple[str, bool], int] = {}
    for result in results:
        path, kind = folder / video_name(result), (result.task, result.success)
        if counts.get(kind, 0) < _SHOWN and path.is_file():
            counts[kind] = counts.get(kind, 0) + 1
            chosen.append((result, path))
    return chosen


def _figures(videos: Sequence[tuple[EpisodeResult, Path]], measure: Measure) -> str:
    figures = []
    for result, path in videos:
        data = base64.b64encode(path.read_bytes()).decode()
        caption = f"{result.task}, seed {result.seed}: {result.ending} after {result.steps} steps"
        if measure == "return":
            caption += f", return {result.total_reward:.0f}"
        figures.append(
            f'<figure><video controls loop muted playsinline preload="auto" src="data:video/mp4;base64,{data}"></video>'
            f"<figcaption>{html.escape(caption)}<br>{html.escape(result.instruction)}</figcaption></figure>"
        )
    return f'<div class="rollouts">{"".join(figures)}</div>' if figures else ""
