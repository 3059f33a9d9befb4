"""The network interface by which a node's workers talk to other nodes.

Left to themselves, gloo takes the address that the host's own name resolves to, which on Debian is 127.0.1.1, and NCCL
the first interface that it likes, which may be a container's bridge. The right one is that with the address by which
Ray knows the node: the other nodes have reached it there already.
"""

from __future__ import annotations

import os
from typing import Any

import psutil

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


def interface_of(address: str) -> str | None:
    """The interface that has this IP address; None if none has."""
    for name, its_addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in its_addresses):
            return name
    return None


def choose_interface(address: str) -> None:
    """Let gloo and NCCL in this process use the interface with the node's address, unless the user has named others."""
    name = interface_of(address)
    if name is None:
        return
    os.environ.setdefault(GLOO, name)
    os.environ.setdefault(NCCL, f"={name}")  # "=": this very one, and not all that begin so


def chosen() -> str:
    """In words, for a log."""
    names = {"gloo": os.environ.get(GLOO, ""), "NCCL": os.environ.get(NCCL, "").removeprefix("=")}
    if names["gloo"] == names["NCCL"]:
        return f"gloo and NCCL talk over {names['gloo'] or 'what they choose'}"
    return ", ".join(f"{who} talks over {name or 'what it chooses'}" for who, name in names.items())


def torch_config(*, timeout_s: int) -> Any:
    """Ray Train's TorchConfig, whose workers choose their interface before they connect to each other."""
    from ray.train.torch import TorchConfig

    from cluster.rendezvous import StoreOpened

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> type:
            backend: Any = super().backend_cls

            class Backend(backend):
                def on_start(self, worker_group: Any, backend_config: Any) -> None:
                    worker_group.execute(_choose_on_this_node)
                    super().on_start(StoreOpened(worker_group), backend_config)

            return Backend

    return Config(timeout_s=timeout_s)


def _choose_on_this_node() -> None:
    import ray.util

    choose_interface(ray.util.get_node_ip_address())
