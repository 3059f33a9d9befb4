"""A child process that ends, with all processes it has started, when this process ends, even by SIGKILL."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

GRACE_S = 10  # between SIGTERM and SIGKILL, in which a server answers its open requests

# Reads until a word comes (nothing to do) or until the pipe closes because this process died (end the group).
_WATCH = 'read -r word || { kill -s TERM -- "-$1"; sleep "$2"; kill -s KILL -- "-$1"; } 2>/dev/null'


def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run `command` to its end; its exit code. An exception while waiting ends it and its process group first.

    The child has a process group of its own, so a terminal's Ctrl-C reaches it once, through this process.
    """
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    with watched(child.pid):
        try:
            return child.wait()
        finally:
            _end_group(child)


@contextmanager
def watched(group: int) -> Iterator[None]:
    """Start a shell that ends the process group if this process is killed."""
    shell = ["/bin/sh", "-c", _WATCH, "watch", str(group), str(GRACE_S)]
    watch = subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        watch.communicate(b"done\n")


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End the processes left in the child's group, whose id is the child's."""
    _signal(child.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)
    _signal(child.pid, signal.SIGKILL)
    child.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is empty
        os.killpg(group, number)
