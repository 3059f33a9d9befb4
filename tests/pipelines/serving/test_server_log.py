"""The log: one line of JSON for each event, and no flood of them."""

from __future__ import annotations

import json
import logging

from pipelines.serving.server_log import ANSWERS, AtMost, JsonLines


def record(event: str, name: str = "rtp.serve") -> logging.LogRecord:
    return logging.LogRecord(name, logging.INFO, "", 0, event, None, None)


def test_an_event_that_comes_again_and_again_does_not_fill_the_log() -> None:
    now = [0.0]
    seldom = AtMost(lines=5, clock=lambda: now[0])
    assert sum(seldom.filter(record("refused")) for _ in range(1000)) == 5
    assert seldom.filter(record("another version is served"))
    assert all(seldom.filter(record("answered", ANSWERS)) for _ in range(1000))
    now[0] = 61.0
    later = record("refused")
    assert seldom.filter(later) and json.loads(JsonLines().format(later))["left_out"] == 995
    assert "left_out" not in json.loads(JsonLines().format(record("refused")))
