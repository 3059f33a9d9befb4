"""The progress of a training. The process that the user started shows it, from the metrics that rank 0 writes.

On a terminal of any width, a bar with two or three lines below it; in a log file, one line of text each time.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.training.run_files import METRICS, Metrics, read_metrics
from pipelines.training.speed import verdict

_POLL_S, _REMOTE_POLL_S = 0.5, 15.0
_BAR = 24


@dataclass(kw_only=True)
class _Run:
    """The run so far: `lines` are its metrics, `began` is when this process started to follow it."""

    num_steps: int
    steps_per_epoch: float | None
    began: float = field(default_factory=time.time)
    lines: list[Metrics] = field(default_factory=list)

    @property
    def step(self) -> int:
        return int(self.lines[-1]["step"]) if self.lines else 0

    def seconds_left(self) -> float | None:
        """From the pace of this attempt's lines; None before there are two."""
        mine = [line for line in self.lines if line["time"] >= self.began]
        if len(mine) < 2 or mine[-1]["step"] <= mine[0]["step"]:
            return None
        pace_s = (mine[-1]["time"] - mine[0]["time"]) / (mine[-1]["step"] - mine[0]["step"])
        return pace_s * (self.num_steps - self.step)

    def words(self) -> list[str]:
        """The newest of everything in words, what matters most first."""
        newest: Metrics = {}
        for line in self.lines:
            newest |= line
        if "loss" not in newest:
            return ["starting workers"]
        epoch = None if self.steps_per_epoch is None else self.step / self.steps_per_epoch
        return [*_of_learning(newest, epoch), *_of_speed(newest)]


@contextmanager
def progress_bar(output: str, num_steps: int, *, steps_per_epoch: float | None = None) -> Iterator[None]:
    """Show the progress of the run in `output` while the block runs; on stderr, so that --json stays clean."""
    run, done = _Run(num_steps=num_steps, steps_per_epoch=steps_per_epoch), threading.Event()
    console = Console(stderr=True)
    tell = _bar if console.is_terminal else _log
    arguments = (console, run, f"{output}/{METRICS}", done)
    thread = threading.Thread(target=tell, args=arguments, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _looks(run: _Run, path: str, done: threading.Event) -> Iterator[None]:
    """Read the metrics again and again, and once more when the run has ended."""
    while True:
        last_look = done.wait(_REMOTE_POLL_S if "://" in path else _POLL_S)
        run.lines = read_metrics(path)
        yield
        if last_look:
            return


def _log(console: Console, run: _Run, path: str, done: threading.Event) -> None:
    shown_step = -1
    for _ in _looks(run, path, done):
        if run.step == shown_step or not any("loss" in line for line in run.lines):
            continue
        shown_step, left = run.step, run.seconds_left()
        words = [f"step {shown_step}/{run.num_steps}", *run.words()]
        if left is not None:
            words.append(f"{_clock(left)} left")
        print("  ".join(words), file=sys.stderr, flush=True)


def _bar(console: Console, run: _Run, path: str, done: threading.Event) -> None:
    with Live(console=console, transient=False, auto_refresh=False) as live:
        live.update(_drawn(run, console.width), refresh=True)
        for _ in _looks(run, path, done):
            live.update(_drawn(run, console.width), refresh=True)


def _drawn(run: _Run, width: int) -> Group:
    row = Table.grid(padding=(0, 1))
    left = run.seconds_left()
    passed = f"{_clock(time.time() - run.began)} passed" + ("" if left is None else f", {_clock(left)} left")
    bar = ProgressBar(total=run.num_steps, completed=run.step, width=min(_BAR, max(width - 50, 4)))
    row.add_row(bar, Text(f"{run.step}/{run.num_steps} steps", no_wrap=True), Text(passed, no_wrap=True))
    return Group(row, *(Text(line, no_wrap=True, overflow="ellipsis") for line in packed(run.words(), width)))


def packed(words: Sequence[str], width: int) -> list[str]:
    """The words, two spaces apart, in as few lines of at most `width` as they need in their order."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 2 + len(word) <= width:
            lines[-1] += f"  {word}"
        else:
            lines.append(word)
    return lines


def _of_learning(newest: Mapping[str, float], epoch: float | None) -> Iterator[str]:
    yield f"loss {newest['loss']:.3f}"
    if "validation_loss" in newest:
        yield f"validation {newest['validation_loss']:.3f}"
    if "learning_rate" in newest:
        yield f"lr {newest['learning_rate']:.1e}"
    if epoch is not None:
        yield f"epoch {epoch:.1f}"


def _of_speed(newest: Mapping[str, float]) -> Iterator[str]:
    yield f"{newest['samples_per_s']:.0f} samples/s"
    yield f"{newest['frames_per_s']:.0f} frames/s"
    if "flops_utilisation" in newest:
        yield f"{100 * newest['flops_utilisation']:.0f} % of peak FLOPs"
    yield f"{100 * newest['waiting_share']:.0f} % waiting ({verdict(newest['waiting_share'])})"
    yield f"{newest['memory_gb']:.1f} GB"


def _clock(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
