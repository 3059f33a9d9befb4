"""Who may call the server, and by which name."""

from __future__ import annotations

import socket

import pytest
from websockets.exceptions import InvalidStatus

from pipelines.serve import ServeArguments, _host_names
from pipelines.serving.access import Access
from pipelines.serving.refusal import Refusal
from preprocessing.store.episode_store import EpisodeStore
from tests.support.policy_clients import OpenpiRobot, get, post
from tests.support.policy_server import running, untrained

LOCAL = Access(host_names=("arm.lab",))


@pytest.mark.parametrize("host", ["localhost:5001", "127.0.0.1:5001", "[::1]:5001", "10.0.0.7", "ARM.lab:80", ""])
def test_a_server_answers_to_its_own_names_and_to_addresses(host: str) -> None:
    LOCAL.require({"host": host})


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:5001", "localhost.evil.example", "127.0.0.1.nip.io", "["]
)
def test_no_other_name_reaches_it(host: str) -> None:
    with pytest.raises(Refusal, match="--host-names") as refused:
        LOCAL.require({"host": host, "origin": f"http://{host}"})  # as a page whose name was bound to this machine
    assert refused.value.status == 421
    Access().require({"host": host})  # where other machines are let in, names are theirs to give


def test_every_way_in_looks_at_the_name(opened: EpisodeStore) -> None:
    as_evil = {"Host": "evil.example"}
    with running(untrained(opened), access=Access(host_names=())) as server:
        for path in ("", "describe", "robots", "metrics"):
            assert get(f"{server.address}/{path}", as_evil)[0] == 421
        assert post(f"{server.address}/act", {}, headers=as_evil)[0] == 421
        assert get(f"{server.address}/healthz", as_evil)[0] == 200  # a probe
        with OpenpiRobot(server.websocket) as robot:
            assert robot.metadata["contract"]
        port = int(server.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as rebound, pytest.raises(InvalidStatus, match="HTTP 421"):
            OpenpiRobot(f"ws://evil.example:{port}", sock=rebound)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ("127.0.0.1",)),
        ({"host_names": ("Arm.Lab:80",)}, ("arm.lab", "127.0.0.1")),
        ({"host": "0.0.0.0"}, None),
        ({"host": "0.0.0.0", "host_names": ("a",)}, ("a", "0.0.0.0")),
    ],
)
def test_names_are_looked_at_where_only_this_machine_is_let_in(settings: dict, names: tuple[str, ...] | None) -> None:
    assert _host_names(ServeArguments(model="runs/first", **settings)) == names
