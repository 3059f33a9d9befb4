"""The server's log: a line of JSON for each event, on stderr. Pictures and tokens are never in it."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable

ANSWERS = "rtp.serve.answers"
"""The logger of answers, which speaks where every request is to be logged."""

_OWN = frozenset(vars(logging.makeLogRecord({})))


def log_as_json(*, each_request: bool) -> None:
    """Log what the server does as lines of JSON; `each_request`: the answers too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    handler.addFilter(AtMost())
    for name, level in (("rtp.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level)
    logging.getLogger(ANSWERS).setLevel(logging.INFO if each_request else logging.WARNING)


class AtMost(logging.Filter):
    """Lets `lines` lines of one event through in a minute, and every answer: whoever is refused again and again does
    not fill the disk. The first line of a later minute says how many were left out."""

    def __init__(self, lines: int = 60, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._lines, self._clock = lines, clock
        self._since: dict[str, float] = {}
        self._seen: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        event, now = str(record.msg), self._clock()
        if record.name == ANSWERS:
            return True
        if now - self._since.get(event, -math.inf) >= 60:
            left_out = self._seen[event] - self._lines
            if left_out > 0:
                record.left_out = left_out
            self._since[event], self._seen[event] = now, 0
        self._seen[event] += 1
        return self._seen[event] <= self._lines


class JsonLines(logging.Formatter):
    """A record as one line of JSON, with the fields given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
        line: dict[str, object] = {"time": stamp, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= {name: value for name, value in vars(record).items() if name not in _OWN and name != "message"}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
