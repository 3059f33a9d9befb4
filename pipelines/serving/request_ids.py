"""The id of a request: answer and log name it alike, so that one can be found by the other."""

from __future__ import annotations

import uuid

_LONGEST = 64


def own_request_id(sent: object) -> str:
    """The id that a caller gave its request, if it can stand in a header and in a line of the log; else empty."""
    fits = isinstance(sent, str) and sent.isascii() and sent.isprintable() and len(sent) <= _LONGEST
    return sent if fits and isinstance(sent, str) else ""


def new_request_id() -> str:
    return uuid.uuid4().hex[:16]
