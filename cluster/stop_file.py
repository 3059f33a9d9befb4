"""Asking a training to stop in good order: a file named STOP in its output folder.

The loop looks for it about once a second, finishes its step, writes a checkpoint and ends; `--resume` continues there.
Ctrl-C, SIGTERM or SIGHUP to the command write the file, and a user can write it by hand. It reaches workers on every
node, since they share the folder with the checkpoints. A worker writes an error that no restart can mend into it, so
that the workers which Ray starts again end at once.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from cluster.context import WorkerContext
from cluster.interrupts import TOLD_BY
from cluster.object_store import open_files

STOPPED_EXIT_CODE = 75  # sysexits.h: EX_TEMPFAIL, "try again later"
_POLL_S = 1.0
_CLOSE_S = 5.0  # for a file that is being written while the run ends
_UNMENDABLE = {error.__name__: error for error in (ValueError, FloatingPointError)}


class StopFile:
    """The file STOP of one run: its text is the reason."""

    def __init__(self, output: str) -> None:
        self._files, root = open_files(output)
        self._path = f"{root.rstrip('/')}/STOP"

    def ask(self, reason: str) -> None:
        self._files.makedirs(self._files._parent(self._path), exist_ok=True)
        self._files.pipe_file(self._path, reason.encode())

    def reason(self) -> str | None:
        """Why the run is to stop; None if nobody asked for it."""
        self._files.invalidate_cache()
        try:
            return self._files.cat_file(self._path).decode(errors="replace") or "the file STOP asked for it"
        except FileNotFoundError:
            return None

    def clear(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path)

    def leave(self, error: ValueError | FloatingPointError) -> None:
        """Let every worker started from now on end with this error."""
        self.ask(json.dumps(error_as_plain(error)))

    def left(self) -> ValueError | FloatingPointError | None:
        """The error that a worker left."""
        with contextlib.suppress(json.JSONDecodeError):
            return error_of(json.loads(self.reason() or ""))
        return None


def error_as_plain(error: ValueError | FloatingPointError) -> dict[str, str]:
    """The error as plain data, in the file and in what a worker returns."""
    kind = "FloatingPointError" if isinstance(error, FloatingPointError) else "ValueError"
    return {"error": kind, "message": str(error)}


def error_of(data: object) -> ValueError | FloatingPointError | None:
    """The error in what `error_as_plain` made; None for other data."""
    kind = _UNMENDABLE.get(str(data.get("error"))) if isinstance(data, Mapping) else None
    return None if kind is None else kind(str(data.get("message", "")))  # type: ignore[union-attr]


class StopWatch:
    """Looks for the file from a thread of its own."""

    def __init__(self, file: StopFile) -> None:
        self._file = file
        self._done = threading.Event()
        self.reason: str | None = None
        threading.Thread(target=self._look, daemon=True, name="stop").start()

    def close(self) -> None:
        self._done.set()

    def _look(self) -> None:
        while self.reason is None and not self._done.wait(_POLL_S):
            with contextlib.suppress(OSError):  # a store that stays out of reach asks for nothing
                self.reason = self._file.reason()


class StopRequest:
    """Whether the training is to stop. Rank 0 looks for the file; every rank asks at the end of each step and is told
    at the end of the next, so that none waits for another: all then stop after the same step.

    `reason` stays None until then, and is the same on every rank.
    """

    def __init__(self, output: str, context: WorkerContext) -> None:
        self._context = context
        self._watch = StopWatch(StopFile(output)) if context.rank == 0 else None
        self.reason: str | None = None
        self._asked: Callable[[], bool] | None = None

    def ask(self) -> None:
        """Collective."""
        reason = None if self._watch is None else self._watch.reason
        asked_before, self._asked = self._asked, self._context.ask_any(reason is not None)
        answer = self._asked if self._context.world_size == 1 else asked_before
        if answer is not None and answer():  # one byte at every step, the text once
            self.reason = self._context.broadcast(reason)

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()


@contextlib.contextmanager
def stopping_on_signals(file: StopFile) -> Iterator[None]:
    """Inside, Ctrl-C, SIGTERM and SIGHUP to this process write the file instead of ending the process.

    A second Ctrl-C raises KeyboardInterrupt. Signals that the process ignores stay ignored. Does nothing outside the
    main thread, which alone handles signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asking = _Asking(file)
    before = {number: signal.getsignal(number) for number in TOLD_BY}
    taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, asking.on_signal)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
        asking.close()


class _Asking:
    """Writes the file from a thread of its own: a signal's handler may interrupt whatever the file system is doing."""

    def __init__(self, file: StopFile) -> None:
        self._file = file
        self._signalled = threading.Event()
        self._by: str | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True, name="signals")
        self._thread.start()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._by is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._by = self._by or TOLD_BY[signal.Signals(number)]
        self._signalled.set()

    def close(self) -> None:
        self._closing.set()
        self._signalled.set()
        self._thread.join(_CLOSE_S)

    def _ask(self) -> None:
        self._signalled.wait()
        if self._by is None:
            return
        print(f"rtp: {self._by}: stopping with a checkpoint; Ctrl-C again stops at once", file=sys.stderr)
        while True:
            try:
                self._file.ask(self._by)
                return
            except OSError as error:  # a signal is not forgotten because a store is away
                print(f"rtp: {self._by} is not passed on yet: {error}", file=sys.stderr)
            if self._closing.wait(_POLL_S):
                return
