"""What the stages found, as JSON and as a page. Written after every stage, so that a killed run loses none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from reproduction.lab import Check, Stage

from pipelines.reports.html_page import heading, note, page, table
from pipelines.terminal.atomic_files import write_whole

Outcome = Literal["as expected", "differs", "failed", "needs more"]
ENDED = ("as expected", "differs")
_CLASSES = {"as expected": "best", "differs": "failed", "failed": "failed", "needs more": "stopped"}


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """One stage: what it needed, what was missing, what it found; `settings` is their fingerprint."""

    stage: str
    question: str
    outcome: Outcome
    needs: tuple[str, ...]
    missing: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    error: str = ""
    commands: tuple[str, ...] = ()
    settings: str = ""
    seconds: float = 0.0
    ended: str = ""

    @staticmethod
    def of(stage: Stage, outcome: Outcome, **found: object) -> StageReport:
        return StageReport(
            stage=stage.name,
            question=stage.question,
            outcome=outcome,
            needs=tuple(need.what for need in stage.needs),
            **found,  # type: ignore[arg-type]
        )


def read(root: Path) -> dict[str, StageReport]:
    """The reports of earlier runs, by stage."""
    path = root / "report.json"
    if not path.is_file():
        return {}
    rows = json.loads(path.read_text())["stages"]
    return {row["stage"]: _of_json(row) for row in rows}


def _of_json(row: dict[str, object]) -> StageReport:
    lists = {name: tuple(row[name]) for name in ("needs", "missing", "commands")}  # type: ignore[arg-type]
    checks = tuple(Check(**check) for check in row["checks"])  # type: ignore[attr-defined]
    return StageReport(**{**row, **lists, "checks": checks})  # type: ignore[arg-type]


def write(root: Path, machine: dict[str, object], reports: Sequence[StageReport]) -> None:
    """report.json and report.html."""
    document = {"machine": machine, "stages": [asdict(report) for report in reports]}
    write_whole(str(root / "report.json"), json.dumps(document, indent=1) + "\n")
    write_whole(str(root / "report.html"), _page(machine, reports))


def _page(machine: dict[str, object], reports: Sequence[StageReport]) -> str:
    overview = table(
        ["stage", "outcome", "checks that held", "seconds", "ended"],
        [[r.stage, r.outcome, _held(r), f"{r.seconds:.0f}", r.ended] for r in reports],
        classes=[_CLASSES[report.outcome] for report in reports],
    )
    machines = note("; ".join(f"{name} {value}" for name, value in machine.items()))
    return page("What was reproduced", [machines, overview, *(_section(report) for report in reports)])


def _section(report: StageReport) -> str:
    parts = [heading(f"{report.stage}: {report.outcome}"), note(report.question)]
    parts.append(note("Needs: " + "; ".join(report.needs)))
    if report.missing:
        parts.append(note("Missing here: " + "; ".join(report.missing)))
    if report.error:
        parts.append(note(f"Stopped: {report.error}"))
    if report.checks:
        rows = [[check.what, check.expected or "-", check.found, verdict(check)] for check in report.checks]
        classes = ["failed" if check.holds is False else "best" if check.holds else "" for check in report.checks]
        parts.append(table(["what", "expected or published", "found", ""], rows, classes=classes))
    if report.commands:
        parts.append(table(["command"], [[command] for command in report.commands]))
    return "".join(parts)


def verdict(check: Check) -> str:
    return {True: "holds", False: "differs", None: "noted"}[check.holds]


def _held(report: StageReport) -> str:
    decided = [check.holds for check in report.checks if check.holds is not None]
    return f"{sum(decided)} of {len(decided)}" if decided else "-"
