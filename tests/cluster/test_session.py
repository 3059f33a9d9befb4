"""Reaching Ray: a dead address is named at once, and a Ray of our own is known to its processes."""

from __future__ import annotations

import os
import socket

import pytest
import ray

from cluster.session import RaySession, connect


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


def test_every_process_of_our_own_ray_knows_which_it_belongs_to() -> None:
    @ray.remote
    def known() -> tuple[str | None, str]:
        return os.environ.get("RAY_ADDRESS"), ray.get_runtime_context().gcs_address

    with connect(RaySession(num_cpus=1)):
        told, own = ray.get(known.remote())
        assert told == own
