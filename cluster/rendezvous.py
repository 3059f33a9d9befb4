"""Where the workers of a training find each other: torch's key-value store on rank 0, on its node's own address.

Torch itself would listen on every interface of the machine, and Ray would name a port that another process may take
before torch does.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from ray.train._internal.utils import get_address_and_port

_STORES: list[dist.TCPStore] = []  # as long as this process lives, the servers of what it has opened


class StoreOpened:
    """Ray Train's worker group, in which rank 0, when asked for its address and a free port, opens the store there."""

    def __init__(self, worker_group: Any) -> None:
        self._group = worker_group

    def __len__(self) -> int:
        return len(self._group)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)

    def execute_single(self, rank: int, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        chosen = open_store if function is get_address_and_port else function
        return self._group.execute_single(rank, chosen, *args, **named)


def open_store() -> tuple[str, int]:
    """Open a store that init_process_group in this process will take for its own; address and port."""
    address, _ = get_address_and_port()
    listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listening.bind((address, 0))
    listening.listen(socket.SOMAXCONN)
    port = listening.getsockname()[1]
    store = dist.TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        multi_tenant=True,  # shared by all stores of this port in this process
        master_listen_fd=listening.detach(),
    )
    _STORES.append(store)
    return address, port
