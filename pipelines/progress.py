"""The progress bar of a training, drawn by the process the user started from the metrics that rank 0 writes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipelines.train_loop import read_metrics

_POLL_S = 0.5


@contextmanager
def following(output: str, num_steps: int) -> Iterator[None]:
    """Show a bar for the run in `output` while the body runs; on stderr, so that --json stays clean."""
    console = Console(stderr=True)
    console = console if console.is_terminal else Console(stderr=True, width=110)
    columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[last]}"), console=console) as bar:
        task = bar.add_task("train", total=num_steps, last="starting workers")
        done = threading.Event()
        thread = threading.Thread(target=_follow, args=(bar, task, Path(output) / "metrics.jsonl", done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _follow(bar: Progress, task: int, path: Path, done: threading.Event) -> None:
    while True:
        last_look = done.wait(_POLL_S)
        lines = [line for line in read_metrics(path) if "loss" in line]
        if lines:
            line = lines[-1]
            waiting = 100 * line["waiting_share"]
            text = f"loss {line['loss']:.3f}  {line['windows_per_s']:.0f} windows/s  {waiting:.0f} % waiting for data"
            bar.update(task, completed=line["step"], last=text)  # type: ignore[arg-type]
        if last_look:
            return
