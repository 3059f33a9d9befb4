"""However a command ends, what it has started ends with it: the child, the child's children, the deaf ones too."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipelines.terminal import child_process
from tests.support.command_line import environment

# A server such as MLflow's: a shell that starts the process which has the port. The second one does not hear SIGTERM.
CHILD = "trap '' TERM; sleep 600 & trap - TERM; sleep 601 & wait"
PARENT = """
import os
from pipelines.terminal import child_process
from cluster.interrupts import raised_as_stopped
child_process.GRACE_S = 1
with raised_as_stopped():
    child_process.run(["/bin/sh", "-c", {child!r}], os.environ)
"""


def family_of(parent: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The shell, its two sleeping children and whoever watches them."""
    ends, found = time.monotonic() + 60, list[psutil.Process]()
    while sum(process.name() == "sleep" for process in found) < 2:
        assert parent.poll() is None and time.monotonic() < ends
        time.sleep(0.05)
        found = psutil.Process(parent.pid).children(recursive=True)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_nothing_outlives_its_parent(number: signal.Signals, tmp_path: Path) -> None:
    words = [sys.executable, "-c", PARENT.format(child=CHILD)]
    parent = subprocess.Popen(words, cwd=tmp_path, env=environment(), start_new_session=True, stderr=subprocess.DEVNULL)
    family = family_of(parent)
    parent.send_signal(number)
    parent.wait(60)
    _, alive = psutil.wait_procs(family, timeout=child_process.GRACE_S + 15)
    left = [process.cmdline() for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    for process in alive:
        process.kill()
    assert left == []


def test_the_exit_code_is_the_childs(tmp_path: Path) -> None:
    assert child_process.run(["/bin/sh", "-c", "exit 7"], environment()) == 7
