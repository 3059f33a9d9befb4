"""Messages to a server that may be unreachable: kept on disk and sent again, without making the training wait."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from cluster.object_store import open_files
from pipelines.terminal.atomic_files import whole_lines, write_whole

log = logging.getLogger(__name__)

Message = dict[str, Any]
_BATCH = 50  # messages of about ten metrics each; MLflow accepts 1000 metrics per call


class Refused(Exception):
    """The server rejects these messages for good: they are discarded with a warning."""


class Outbox:
    """Delivers JSON messages in their order from a thread of its own.

    `deliver` raises if sending should be tried again. While the server is unreachable, waiting messages are also kept
    in a file, `kept` (path or URL). An outbox opened on that file later sends them first, after a restart too.
    """

    def __init__(self, deliver: Callable[[list[Message]], None], *, kept: str, retry_s: float = 5.0) -> None:
        self._deliver = deliver
        self._kept = kept
        self._retry_s = retry_s
        self._waiting: deque[Message] = deque(whole_lines(kept))
        self._changed = threading.Condition()
        self._closing_at: float | None = None
        self._is_away = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="outbox")
        self._thread.start()

    def put(self, message: Message) -> None:
        """Returns at once."""
        with self._changed:
            self._waiting.append(message)
            self._changed.notify()

    def close(self, *, timeout_s: float = 20.0) -> int:
        """Wait up to `timeout_s` for the remaining messages; the number of messages kept for the next outbox."""
        with self._changed:
            self._closing_at = time.monotonic() + timeout_s
            self._changed.notify()
        self._thread.join(timeout_s + 1)
        return self._keep()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            try:
                self._deliver(batch)
            except Refused as error:
                log.warning("%d updates are discarded: %s", len(batch), error)
            except Exception as error:
                if not self._is_away:
                    log.warning("%s; training continues, and updates are sent again later", error)
                self._is_away = True
                self._keep()
                if not self._pause():
                    return
                continue
            with self._changed:
                for _ in batch:
                    self._waiting.popleft()
            if self._is_away:
                log.warning("the tracking server answers again")
                self._is_away = False

    def _next(self) -> list[Message] | None:
        """The oldest messages, as soon as there are any; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing_at is not None)
            return [self._waiting[number] for number in range(min(_BATCH, len(self._waiting)))] or None

    def _keep(self) -> int:
        with self._changed:
            left = list(self._waiting)
        try:
            _write(self._kept, left)
        except OSError as error:
            log.warning("%d updates could be neither delivered nor kept in %s: %s", len(left), self._kept, error)
        return len(left)

    def _pause(self) -> bool:
        """Wait before another try; False if there is no time for one."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing_at is not None, timeout=self._retry_s)
        if self._closing_at is None:
            return True
        left_s = self._closing_at - time.monotonic()
        time.sleep(max(0.0, min(left_s, 1.0, self._retry_s)))
        return left_s > 0


def _write(path: str, messages: list[Message]) -> None:
    files, name = open_files(path)
    if messages:
        write_whole(path, "".join(json.dumps(message) + "\n" for message in messages))
    elif files.exists(name):
        files.rm_file(name)
