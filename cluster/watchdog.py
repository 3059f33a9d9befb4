"""Ends a process that has stopped working, so that its supervisor (Ray Train) can start it again."""

from __future__ import annotations

import faulthandler
import time


class Watchdog:
    """After the first heartbeat, ends the process if none follows for `timeout_s` seconds; stacks go to stderr.

    It does not start before the first heartbeat: building a model may take long. The timer is that of Python's
    faulthandler. It needs no interpreter lock, so that a call hung in C is ended too. One per process.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._rearm_at = 0.0

    def beat(self) -> None:
        now = time.monotonic()
        if now >= self._rearm_at:  # re-arming costs a thread start: not at every micro-batch
            faulthandler.dump_traceback_later(self._timeout_s, exit=True)
            self._rearm_at = now + min(1.0, self._timeout_s / 10)

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()
