"""Malformed messages by the hundred: each is refused or answered, and a robot beside them goes on as if alone.

`benchmarks/hostile_messages.py` sends ten thousand.
"""

from __future__ import annotations

import base64
import http.client
import random
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from pipelines.serving.limits import Limits
from pipelines.serving.service import ServiceConfig
from preprocessing.store.episode_store import EpisodeStore
from tests.support import hostile_messages
from tests.support.policy_clients import OpenpiRobot, get, post
from tests.support.policy_server import RunningServer, running, untrained

MESSAGES = 150


@pytest.fixture(scope="module")
def server(opened: EpisodeStore) -> Iterator[RunningServer]:
    limits = Limits(max_message_mib=1, max_rate_hz=10_000)
    with running(untrained(opened), ServiceConfig(limits=limits)) as started:
        yield started


@pytest.fixture
def good(server: RunningServer, text: str) -> Iterator[None]:
    """A well-behaved robot that asks before and after, with the answers of one that is alone."""
    model = server.service.model
    policy, told = model.episode(model.contract.datasets[0]), model.instruction(text)
    with OpenpiRobot(server.websocket) as robot:
        for step in range(8):
            image = hostile_messages.frame(step)
            answer = robot.infer({"image": image, "prompt": text})
            (expected,) = model.act([policy], [image], [told])
            np.testing.assert_array_equal(answer["tokens"][0], expected.tokens)
            if step == 3:
                yield


def test_openpi_s_connection_outlives_every_malformed_message(server: RunningServer, good: None, text: str) -> None:
    draw = random.Random(0)
    message = hostile_messages.openpi({"image": hostile_messages.frame(0), "prompt": text, "reset": False})
    with OpenpiRobot(server.websocket) as robot:
        refused = 0
        for _ in range(MESSAGES):
            robot.socket.send(message(draw))
            refused += isinstance(robot.socket.recv(timeout=30), str)
        assert refused > MESSAGES / 2
        assert robot.infer({"image": hostile_messages.frame(1), "prompt": text, "reset": True})["frames_seen"] == 1


def test_so_does_the_harness_s(server: RunningServer, good: None, text: str) -> None:
    draw = random.Random(1)
    image = hostile_messages.frame(0)[:16, :16]  # sent as numbers: a whole one would take most of the time
    seen = {"images": {"primary": image}, "task_description": text, "states": [0.0] * 8}
    message = hostile_messages.harness(seen)
    with connect(f"{server.websocket}/vla", max_size=None, compression=None) as robot:
        for _ in range(MESSAGES):
            robot.send(message(draw))
            assert isinstance(robot.recv(timeout=30), bytes)


def test_http_answers_every_malformed_request(
    server: RunningServer, good: None, frames: list[bytes], text: str
) -> None:
    draw = random.Random(2)
    row = {"image": base64.b64encode(frames[0]).decode(), "instruction": text, "stateless": True}
    for path, fields in (("act", row), ("invocations", {"dataframe_records": [row], "params": {}})):
        message = hostile_messages.in_json(fields)
        statuses = [post(f"{server.address}/{path}", message(draw))[0] for _ in range(MESSAGES // 2)]
        assert set(statuses) <= {200, 400, 415} and statuses.count(400) > 20, statuses


def test_a_message_that_is_too_large_ends_its_connection_alone(server: RunningServer, good: None) -> None:
    with OpenpiRobot(server.websocket) as robot:
        robot.socket.send(bytes(2**20 + 1))
        with pytest.raises(ConnectionClosed) as closed:
            robot.socket.recv(timeout=30)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def test_callers_that_stop_in_the_middle_hold_nobody_up(server: RunningServer, good: None) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    halves = [
        b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgr",
        b"\x16\x03\x01\x02\x00",
    ]
    sockets = [socket.create_connection((host, int(port))) for _ in range(12)]
    for number, caller in enumerate(sockets):
        caller.sendall(halves[number % 3])
    time.sleep(0.3)
    for caller in sockets:
        caller.close()


def test_a_header_that_does_not_end_takes_no_place_for_long(
    server: RunningServer, good: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.serving.patience.HEADER_S", 0.3)
    host, port = server.address.removeprefix("http://").split(":")
    callers = [socket.create_connection((host, int(port)), timeout=20) for _ in range(250)]
    for caller in callers[1:]:
        caller.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\n")
    for caller in callers:
        assert caller.recv(1) == b""  # closed, also the one that said nothing
        caller.close()
    assert get(f"{server.address}/healthz")[0] == 200


def test_a_connection_that_goes_on_is_kept(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.serving.patience.HEADER_S", 0.2)
    caller = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=20)
    with OpenpiRobot(server.websocket) as robot:
        for _ in range(3):
            caller.request("GET", "/healthz")
            answer = caller.getresponse()
            assert (answer.status, answer.read()) == (200, b"OK\n")
            time.sleep(0.4)
        with pytest.raises(RuntimeError, match="no camera frame"):
            robot.infer({"prompt": "x"})


def test_half_of_a_character_is_refused_and_hides_no_other_robot(
    server: RunningServer, frames: list[bytes], text: str
) -> None:
    """Python reads it from JSON, but /robots, which names every robot, could not be written any more."""
    row = {"image": base64.b64encode(frames[0]).decode(), "instruction": text, "robot": "arm \U0001f9be"}
    assert post(f"{server.address}/invocations", {"dataframe_records": [row]})[0] == 200
    for field in ("robot", "instruction", "contract", "dataset", "\udc00"):
        halved = {**row, field: "\ud83e"}
        for path, body in (("act", halved), ("invocations", {"dataframe_records": [halved]})):
            status, answer = post(f"{server.address}/{path}", body)
            assert status == 400 and "surrogates not allowed" in str(answer), (field, path, answer)
    unnamed = {name: row[name] for name in ("image", "instruction")}
    assert post(f"{server.address}/act?robot={'a' * 300}", unnamed)[0] == 400
    assert "arm \U0001f9be" in [robot["name"] for robot in get(f"{server.address}/robots")[1]["robots"]]
