"""Reaching Ray: a dead address is named at once, and a Ray of our own is known to its processes."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from cluster import session
from cluster.session import RaySession, connect, on_demand


def test_dead_address_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may hold a connection
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (
        pytest.raises(ConnectionError, match=f"no Ray cluster answers at '{address}'"),
        connect(RaySession(address=address)),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8265", "a dashboard's address: give the head's"),
        ("nonsense", r"'nonsense'.* is no address of a Ray cluster: give auto or 127.0.0.1:6379"),
        ("127.0.0.1:six", "its port is not a number"),
    ],
)
def test_what_is_no_address_of_a_head_is_refused(address: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=words), connect(RaySession()):
        pass


def test_a_server_that_is_not_ray_is_named_within_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that accepts connections and says nothing."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session, "ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        began = time.monotonic()
        words = r"\(RAY_ADDRESS\): what listens there is not Ray.*unset RAY_ADDRESS"
        with pytest.raises(ConnectionError, match=words), connect(RaySession()):
            pass
        assert time.monotonic() - began < 30


def test_a_connection_on_demand_is_made_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with on_demand(RaySession()) as reach, pytest.raises(ConnectionError, match="no Ray cluster answers"):
        reach()


class TestOurOwnRay:
    """One for all of these, with two GPUs as it believes."""

    @pytest.fixture(scope="class", autouse=True)
    def own_ray(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 2}')
            patch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
            with connect(RaySession(num_cpus=1)):
                yield

    def test_every_process_knows_which_it_belongs_to(self) -> None:
        @ray.remote
        def known() -> tuple[str | None, str]:
            return os.environ.get("RAY_ADDRESS"), ray.get_runtime_context().gcs_address

        told, own = ray.get(known.remote())
        assert told == own

    def test_a_slow_answer_of_ray_to_itself_prints_no_traceback(self) -> None:
        helper = "ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client"
        assert importlib.util.find_spec(helper) is not None

        @ray.remote
        def shown() -> bool:
            logging.getLogger("ray.train").setLevel(logging.WARNING)  # as Ray Train does in its own processes
            return logging.getLogger(helper).isEnabledFor(logging.WARNING)

        assert not ray.get(shown.remote())

    def test_a_process_that_asks_for_no_gpu_sees_none(self) -> None:
        @ray.remote(num_cpus=0)
        def visible() -> str | None:
            return os.environ.get("CUDA_VISIBLE_DEVICES")

        @ray.remote(num_cpus=0, num_gpus=1)
        class Trial:
            def visible(self) -> str | None:
                return os.environ.get("CUDA_VISIBLE_DEVICES")

        trials: list[Any] = [Trial.remote(), Trial.remote()]
        assert sorted(ray.get([trial.visible.remote() for trial in trials])) == ["4", "6"]
        assert ray.get(visible.remote()) == ""


def test_sockets_lie_in_a_short_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/t" * 18)
    monkeypatch.setenv("RAY_TMPDIR", "/short")  # so that it is given back at the end
    for long, folder in ((False, None), (True, "/tmp")):
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setenv("TMPDIR", "/t" * (19 if long else 18))
        session._keep_sockets_short()
        assert os.environ.get("RAY_TMPDIR") == folder
    monkeypatch.setenv("RAY_TMPDIR", "/t" * 19)
    with pytest.raises(ValueError, match=r"RAY_TMPDIR is too long for Ray's sockets .*: set RAY_TMPDIR to a shorter"):
        session._keep_sockets_short()
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="TMPDIR is too long for Ray's sockets"):
        session._keep_sockets_short()


def test_a_ray_that_does_not_come_up_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    level = logging.getLogger().level

    def busy(**_: object) -> None:
        logging.getLogger().setLevel(logging.ERROR)  # as Ray does for itself
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", busy)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(ChildProcessError, match=r"timed out during startup.*less busy.*InProcess"),
        connect(RaySession()),
    ):
        pass
    assert logging.getLogger().level == level


def test_ray_learns_of_nodes_that_vanish_in_less_than_its_seven_minutes() -> None:
    """Ray reads its settings when it is imported; one of the user's own stays."""
    code = (
        "from cluster.session import find_lost_nodes_sooner; find_lost_nodes_sooner(); "
        "from ray._raylet import Config as c; "
        "print(c.grpc_client_keepalive_time_ms(), c.grpc_client_keepalive_timeout_ms())"
    )
    own = {"RAY_grpc_client_keepalive_timeout_ms": "7000"}
    environment = {name: value for name, value in os.environ.items() if name not in session.LOST_NODES_FOUND} | own
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["65000", "7000"]
