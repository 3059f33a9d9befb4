"""A child process that does not outlive us, nor does anything that it has started: however we end, SIGKILL included."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

GRACE_S = 10  # between SIGTERM and SIGKILL: a server answers the requests that it has first

# Reads until a word comes, after which nothing is left to do, or until the pipe's other end is gone, and we with it.
_WATCH = f'read -r word || {{ kill -s TERM -- "-$1"; sleep {GRACE_S}; kill -s KILL -- "-$1"; }} 2>/dev/null'


def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run `command` to its end; its exit code. What ends us while we wait ends it, and all that it has started, first.

    The child has a process group of its own: a terminal's Ctrl-C reaches it through us, once.
    """
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    with watched(child.pid):
        try:
            return child.wait()
        finally:
            _end_group(child)


@contextmanager
def watched(group: int) -> Iterator[None]:
    """A shell beside us that ends the process group if we are killed and cannot."""
    shell = ["/bin/sh", "-c", _WATCH, "watch", str(group)]
    watch = subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        watch.communicate(b"done\n")


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End whoever is left in the child's process group, whose number is the child's."""
    _signal(child.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)
    _signal(child.pid, signal.SIGKILL)
    child.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
        os.killpg(group, number)
