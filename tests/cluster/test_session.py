"""Reaching Ray: a dead address is named at once."""

from __future__ import annotations

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
