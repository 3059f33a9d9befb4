"""Ctrl-C, `kill` (SIGTERM) and a terminal that closes (SIGHUP) end a command in the same way.

Python raises KeyboardInterrupt for Ctrl-C alone. The other signals end a process at once, without its `finally`
clauses: locks and temporary folders remain, and child processes live on.

Python also drops an exception that is raised while it calls a destructor or the callback of a weak reference
("Exception ignored in"). A signal that comes in such a moment is sent to the main thread again.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_AGAIN_S = 0.02  # until a dropped signal is sent again, by which the destructor has ended

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
        with _sent_again():
            yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


@contextmanager
def _sent_again() -> Iterator[None]:
    """Inside, a KeyboardInterrupt that Python drops is raised again by another signal of its kind."""
    before, ended = sys.unraisablehook, threading.Event()
    main_thread = threading.get_ident()

    def send(number: int) -> None:
        time.sleep(_AGAIN_S)
        if not ended.is_set():
            signal.pthread_kill(main_thread, number)

    def dropped(what: sys.UnraisableHookArgs) -> None:
        if not isinstance(what.exc_value, KeyboardInterrupt):
            before(what)
            return
        with suppress(RuntimeError):  # the interpreter ends
            # Not threading.Thread, whose start takes a lock that the interrupted code may hold.
            _thread.start_new_thread(send, (exit_code_of(what.exc_value) - 128,))

    sys.unraisablehook = dropped
    try:
        yield
    finally:
        ended.set()
        sys.unraisablehook = before
