"""Our own client: it comes back by itself after its server has gone, as a new robot."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines.publishing.trained_model import publish_bundle
from pipelines.serving.access import Access
from pipelines.serving.client import PolicyClient
from pipelines.serving.frontend import Frontend
from pipelines.serving.run import Listening, free_port, in_background
from pipelines.serving.service import PolicyService, ServiceConfig
from preprocessing.store.episode_store import EpisodeStore
from tests.support.command_line import environment
from tests.support.policy_server import untrained

FRAME = np.full((96, 128, 3), 128, np.uint8)


@contextlib.contextmanager
def serving(opened: EpisodeStore, port: int, access: Access | None = None) -> Iterator[None]:
    frontend = Frontend(service=PolicyService(untrained(opened), ServiceConfig()), access=access or Access())
    with in_background(frontend, Listening(port=port)):
        yield


def test_a_client_connects_again_and_begins_anew(opened: EpisodeStore, text: str) -> None:
    port, seen = free_port(), {"image": FRAME, "prompt": text}
    with serving(opened, port):
        client = PolicyClient(f"ws://127.0.0.1:{port}")
        assert [client.infer(seen)["frames_seen"] for _ in range(2)] == [1, 2]
    comes_back = threading.Event()

    def later() -> None:
        time.sleep(0.5)
        with serving(opened, port):
            comes_back.wait(60)

    thread = threading.Thread(target=later)
    thread.start()
    try:
        assert client.infer(seen)["frames_seen"] == 1 and client.reconnects == 1
        assert client.infer(seen)["frames_seen"] == 2 and client.reconnects == 1
    finally:
        comes_back.set()
        thread.join()
        client.close()


def test_a_server_that_comes_back_with_another_contract_moves_no_robot(opened: EpisodeStore, text: str) -> None:
    port, seen = free_port(), {"image": FRAME, "prompt": text}
    with serving(opened, port):
        client = PolicyClient(f"ws://127.0.0.1:{port}")
    client.metadata = {**client.metadata, "contract": "0123456789abcdef"}
    with serving(opened, port), pytest.raises(ConnectionError, match="and it was 0123456789abcdef"):
        client.infer(seen)


def test_what_does_not_come_back_is_told(opened: EpisodeStore, text: str) -> None:
    port, seen = free_port(), {"image": FRAME, "prompt": text}
    with serving(opened, port):
        patient = PolicyClient(f"ws://127.0.0.1:{port}", reconnect_s=0.3)
        strict, stranger = (PolicyClient(f"ws://127.0.0.1:{port}", reconnect_s=seconds) for seconds in (0, 60))
    for client in (patient, strict):
        with pytest.raises(ConnectionError, match="has gone away"):
            client.infer(seen)
    with serving(opened, port, Access(token="new")), pytest.raises(ConnectionError, match="HTTP 401"):
        stranger.infer(seen)  # at once: it will not be let in later either


@pytest.mark.slow
def test_robots_outlive_a_killed_server(opened: EpisodeStore, text: str, tmp_path: Path) -> None:
    """Two real processes of `rtp serve`, one after the other; the first is killed between two answers."""
    bundle, port, seen = str(tmp_path / "policy"), free_port(), {"image": FRAME, "prompt": text}
    publish_bundle(untrained(opened), bundle)
    command = [sys.executable, "-m", "pipelines", "serve", bundle, "--port", str(port), "--device", "cpu"]

    def started() -> subprocess.Popen[str]:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None and f"serving {bundle}" in server.stdout.readline()
        return server

    server = started()
    try:
        robots = [PolicyClient(f"ws://127.0.0.1:{port}") for _ in range(4)]
        assert [robot.infer(seen)["frames_seen"] for robot in robots for _ in range(2)] == [1, 2] * 4
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        server = started()
        assert [robot.infer(seen)["frames_seen"] for robot in robots for _ in range(2)] == [1, 2] * 4
        assert [robot.reconnects for robot in robots] == [1] * 4
        for robot in robots:
            robot.close()
    finally:
        server.terminate()
        assert server.wait(60) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
