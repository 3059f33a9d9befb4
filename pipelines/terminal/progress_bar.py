"""Progress of long work, on stderr: a bar in a terminal, a line every 20 s in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Count = Callable[[int], None]
"""Called with the number of units done since the last call."""

_LINE_EVERY_S = 20.0


def uncounted(done: int) -> None:
    """Show no progress."""


@contextmanager
def counting(what: str, total: int) -> Iterator[Count]:
    """Show how much of `total` is done while the body runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


@contextmanager
def share_done(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function that shows how much is done of how much; nothing before its first call, so that a refusal stands
    alone."""
    bar = Progress(console=Console(stderr=True))

    def show(done: int, total: int) -> None:
        if not bar.task_ids:
            bar.add_task(what)
            bar.start()
        bar.update(bar.task_ids[0], completed=done, total=total)

    try:
        yield show
    finally:
        if bar.task_ids:
            bar.stop()


def _lines(what: str, total: int) -> Count:
    console = Console(stderr=True, soft_wrap=True)
    began = printed_at = time.monotonic()
    so_far = 0

    def count(done: int) -> None:
        nonlocal so_far, printed_at
        so_far += done
        now = time.monotonic()
        if now - printed_at >= _LINE_EVERY_S:
            printed_at = now
            left_s = (now - began) * (total - so_far) / max(so_far, 1)
            console.print(f"{what}: {so_far} of {total}, about {max(left_s, 0):.0f} s left", highlight=False)

    return count
