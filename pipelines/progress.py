"""The progress bar of a training, drawn by the process the user started from the metrics that rank 0 writes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from pipelines.run_files import METRICS, read_metrics
from pipelines.speed import verdict

_POLL_S, _REMOTE_POLL_S = 0.5, 15.0


@contextmanager
def following(output: str, num_steps: int) -> Iterator[None]:
    """Show a bar for the run in `output` while the body runs; on stderr, so that --json stays clean."""
    console = Console(stderr=True)
    console = console if console.is_terminal else Console(stderr=True, width=110)
    kinds = (BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn)
    columns = [kind(table_column=Column(no_wrap=True)) for kind in kinds]
    words = TextColumn("{task.fields[last]}", table_column=Column(overflow="fold"))  # gives way in a narrow window
    with Progress(*columns, words, console=console) as bar:
        task = bar.add_task("train", total=num_steps, last="starting workers")
        done = threading.Event()
        thread = threading.Thread(target=_follow, args=(bar, task, f"{output}/{METRICS}", done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _follow(bar: Progress, task: int, path: str, done: threading.Event) -> None:
    told = None
    while True:
        last_look = done.wait(_REMOTE_POLL_S if "://" in path else _POLL_S)
        lines = [line for line in read_metrics(path) if "loss" in line]
        if lines:
            line = lines[-1]
            bar.update(task, completed=line["step"], last=_said(line))  # type: ignore[arg-type]
            if not bar.console.is_terminal and line["step"] != told:  # a log: no bar is drawn there
                bar.console.print(f"step {line['step']:.0f}  {_said(line)}", highlight=False)
                told = line["step"]
        if last_look:
            return


def _said(line: dict[str, float]) -> str:
    """The line of metrics in words."""
    said = [
        f"loss {line['loss']:.3f}",
        f"{line['samples_per_s']:.0f} samples/s",
        f"{line['frames_per_s']:.0f} frames/s",
        f"{100 * line['waiting_share']:.0f} % waiting ({verdict(line['waiting_share'])})",
        f"{line['memory_gb']:.1f} GB",
    ]
    if "flops_utilisation" in line:
        said.insert(3, f"{100 * line['flops_utilisation']:.0f} % of peak FLOPs")
    return "  ".join(said)
