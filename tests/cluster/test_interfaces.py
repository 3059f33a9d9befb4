"""Which interface gloo and NCCL are given."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest

from cluster import interfaces
from cluster.interfaces import GLOO, NCCL, choose_interface, chosen, interface_of

ADDRESSES = {
    "lo": ["127.0.0.1", "::1"],
    "docker0": ["172.17.0.1"],
    "eth0": ["10.0.0.7", "fe80::1%eth0", "fd00::7"],
}


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = {name: [SimpleNamespace(address=each) for each in own] for name, own in ADDRESSES.items()}
    monkeypatch.setattr(interfaces.psutil, "net_if_addrs", lambda: cards)
    for name in (GLOO, NCCL):
        monkeypatch.setenv(name, "")  # so that it is given back at the end
        monkeypatch.delenv(name)


def test_the_interface_is_that_of_the_node_s_address(cards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for address, name in (("10.0.0.7", "eth0"), ("fd00::7", "eth0"), ("fe80::1", "eth0"), ("127.0.0.1", "lo")):
        assert interface_of(address) == name
    choose_interface("192.0.2.1")
    assert interface_of("192.0.2.1") is None and chosen() == "gloo and NCCL talk over what they choose"
    choose_interface("10.0.0.7")
    assert (interfaces.os.environ[GLOO], interfaces.os.environ[NCCL]) == ("eth0", "=eth0")
    assert chosen() == "gloo and NCCL talk over eth0"


def test_the_user_s_own_choice_stays(cards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NCCL, "ib0")
    choose_interface("10.0.0.7")
    assert chosen() == "gloo talks over eth0, NCCL talks over ib0"


def test_this_machine_has_a_loopback_interface() -> None:
    assert interface_of("127.0.0.1") in [name for _, name in socket.if_nameindex()]
