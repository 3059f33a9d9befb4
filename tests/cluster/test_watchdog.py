"""The watchdog ends a process that hangs, and only that one."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import time
from cluster.watchdog import Watchdog
watchdog = Watchdog(0.5)
time.sleep(0.7)
for _ in range(10):
    time.sleep(0.1)
    watchdog.beat()
{end}
print("alive", flush=True)
"""


def run(end: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM.format(end=end)], capture_output=True, text=True, timeout=30)


def test_hung_process_is_ended_with_its_stack() -> None:
    ended = run("def stuck_here():\n    time.sleep(20)\nstuck_here()")
    assert ended.returncode == 1 and "alive" not in ended.stdout
    assert "stuck_here" in ended.stderr


def test_closed_watchdog_lets_the_process_be() -> None:
    ended = run("watchdog.close()\ntime.sleep(1)")
    assert ended.returncode == 0 and "alive" in ended.stdout
