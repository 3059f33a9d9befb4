"""Ctrl-C, `kill` (SIGTERM) and a terminal that closes (SIGHUP) end a command in the same way.

Python raises KeyboardInterrupt for Ctrl-C alone. The other signals end a process at once, without its `finally`
clauses: locks and temporary folders remain, and child processes live on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TOLD_BY = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP, as an exception."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code_of(interrupt: KeyboardInterrupt) -> int:
    """As a shell gives it, 128 + the signal's number: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (interrupt.number if isinstance(interrupt, Stopped) else signal.SIGINT)


@contextmanager
def raised_as_stopped() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise Stopped in the main thread, unless they are ignored (nohup) or handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)
