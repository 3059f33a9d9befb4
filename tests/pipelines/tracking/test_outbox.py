"""A server that goes away and comes back, seen by the sender; the real one is in test_tracking.py."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pipelines.tracking.outbox import Message, Outbox, Refused


class Server:
    """Takes messages while it is up."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.up = threading.Event()
        self.up.set()

    def deliver(self, messages: list[Message]) -> None:
        if not self.up.is_set():
            raise ConnectionError("nobody answers")
        self.taken += [message["number"] for message in messages]


def kept_in(folder: Path) -> str:
    return str(folder / "kept.jsonl")


def test_everything_arrives_in_order_through_an_outage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    outbox = Outbox(server.deliver, kept=kept_in(tmp_path), retry_s=0.01)
    for number in range(500):
        if number == 100:
            server.up.clear()
        if number == 400:
            time.sleep(0.05)
            server.up.set()
        outbox.put({"number": number})
    assert outbox.close() == 0
    assert server.taken == list(range(500)) and list(tmp_path.iterdir()) == []
    assert caplog.text.count("nobody answers") == 1 and "answers again" in caplog.text


def test_putting_never_waits_for_the_server(tmp_path: Path) -> None:
    hangs = threading.Event()
    outbox = Outbox(lambda messages: (hangs.wait(10), None)[1], kept=kept_in(tmp_path))
    began = time.perf_counter()
    for number in range(1000):
        outbox.put({"number": number})
    assert time.perf_counter() - began < 0.5
    hangs.set()
    assert outbox.close() == 0


def test_what_an_outage_kept_is_sent_first_by_the_next_process(tmp_path: Path) -> None:
    server = Server()
    server.up.clear()
    outbox = Outbox(server.deliver, kept=kept_in(tmp_path), retry_s=0.01)
    for number in range(70):
        outbox.put({"number": number})
    assert outbox.close(timeout_s=0.2) == 70
    server.up.set()
    again = Outbox(server.deliver, kept=kept_in(tmp_path), retry_s=0.01)
    again.put({"number": 70})
    assert again.close() == 0
    assert server.taken == list(range(71)) and list(tmp_path.iterdir()) == []


def test_a_killed_process_loses_nothing_that_waited(tmp_path: Path) -> None:
    """While the server is away the file holds what waits, so that no orderly end is needed."""
    server = Server()
    server.up.clear()
    outbox = Outbox(server.deliver, kept=kept_in(tmp_path), retry_s=0.01)
    outbox.put({"number": 1})
    ends = time.monotonic() + 5
    while not Path(kept_in(tmp_path)).exists():
        assert time.monotonic() < ends
        time.sleep(0.01)
    assert '{"number": 1}' in Path(kept_in(tmp_path)).read_text()
    server.up.set()
    outbox.close()


def test_a_line_that_a_kill_has_cut_does_not_hinder_the_next_process(tmp_path: Path) -> None:
    server = Server()
    Path(kept_in(tmp_path)).write_text('{"number": 0}\n{"number": 1}\n{"num')
    again = Outbox(server.deliver, kept=kept_in(tmp_path), retry_s=0.01)
    assert again.close() == 0 and server.taken == [0, 1]


def test_what_the_server_refuses_for_good_is_given_up_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(messages: list[Message]) -> None:
        raise Refused("no such run")

    outbox = Outbox(refuse, kept=kept_in(tmp_path))
    outbox.put({"number": 0})
    assert outbox.close() == 0 and "1 updates are discarded: no such run" in caplog.text
