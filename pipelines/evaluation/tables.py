"""The scores of `rtp evaluate` as tables in a terminal, whole at 80 columns: names are folded, never cut off."""

from __future__ import annotations

import os
import re

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pipelines.evaluation.report import EpisodeReport, EvaluationReport, WebReport
from pipelines.reports.run_page import (
    DIMENSION_HEAD,
    SCORE_HEAD,
    WEB_HEAD,
    before_rows,
    dimension_rows,
    further_tables,
    own_space_table,
    score_rows,
    web_rows,
)

_LOG_WIDTH = 110  # where there is no window
_LEAST_NAME = 8


def print_tables(report: EvaluationReport, console: Console | None = None) -> None:
    """Scores and errors as text."""
    console = console or _console()
    if isinstance(report, EpisodeReport):
        _say(console, f"{report.store}: {report.steps} steps of {report.episodes} episodes")
        _print_table(console, SCORE_HEAD, score_rows(report))
        _print_table(console, DIMENSION_HEAD, dimension_rows(report))
        if report.own_space is not None:
            _print_table(console, *own_space_table(report.own_space))
        for head, rows in further_tables(report):
            _print_table(console, head, rows)
        for sentence in (report.not_measured or {}).values():
            _say(console, sentence)
        for sentence in report.off_policy.assumptions if report.off_policy is not None else ():
            _say(console, sentence)
        if report.decoding is not None:
            mass, rate = report.decoding.valid_token_mass, report.decoding.invalid_rate_without_mask
            _say(console, f"probability of valid action tokens {mass:.4f}; invalid without the mask {100 * rate:.2f} %")
    elif isinstance(report, WebReport):
        _say(console, f"{report.store}: {report.examples} image-text examples")
        _print_table(console, WEB_HEAD, web_rows(report))
    if report.before is not None:
        _print_table(console, ["", "before", "now"], before_rows(report.before.scores, report.headlines()))
        for reason in report.before.not_compared.values():
            _say(console, reason)


def print_rows(head: list[str], rows: list[list[str]], console: Console | None = None) -> None:
    """A table."""
    _print_table(console or _console(), head, rows)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_LOG_WIDTH)


def _say(console: Console, sentence: str) -> None:
    """The window wraps it, so that a path in it can be copied."""
    console.print(sentence, soft_wrap=True, highlight=False, markup=False)


def _print_table(console: Console, head: list[str], rows: list[list[str]]) -> None:
    """The first column gives way where the window is narrow."""
    lines = [[line for row in [head, *rows] for line in row[i].split("\n")] for i in range(1, len(head))]
    room = console.width - 2 * len(head) - sum(max(map(len, column)) for column in lines)
    table = Table(Column(head[0], overflow="fold"), *(Column(Text(cell), no_wrap=True) for cell in head[1:]), box=None)
    for name, *cells in rows:
        table.add_row(Text(_folded(name, max(room, _LEAST_NAME))), *map(Text, cells))
    console.print(table)


def _folded(name: str, width: int) -> str:
    """`name` in lines of at most `width`, broken after underscores and spaces where it has some."""
    lines = [""]
    for piece in re.split(r"(?<=[_ ])", name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)
