"""Mutual exclusion among all processes that use a registry. MLflow's registries offer one thing for it: unique names.

A lock is a registered model with the lock's name. Its tags name the holder and count the holder's heartbeats. If the
count stands still for STALE_S, another process takes over. It does not delete the lock, but creates
`<lock>.<token of the former holder>`: only one process can, and this model is the lock from then on. Tokens are random,
so a name never changes its meaning between a read and a deletion. A process that releases the lock first takes over
from itself, so that no other process takes over in the meantime.

MLflow cannot refuse a write because of its sender. A holder therefore calls `Lease.require` before each write, and may
write only for FRESH_S after its last heartbeat. FRESH_S and the longest time that MLflow waits for an answer are
together below STALE_S.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from mlflow import MlflowClient

T = TypeVar("T")

log = logging.getLogger(__name__)

STALE_S = 150.0
FRESH_S = 40.0  # MLflow gives up a request after 3 tries of 30 s (pipelines/tracking/mlflow_run.py)
BEAT_S = 5.0
POLL_S = 0.1

LOCKED = ".lock"  # how the names of locks end, and how those of successors go on


def is_lock(name: str) -> bool:
    """Whether a registered model of this name is a lock, or a part of one that a dead process has left behind."""
    return name.endswith(LOCKED) or f"{LOCKED}." in name


class Lease:
    """A lock that this process holds. Sends heartbeats until it is closed."""

    def __init__(self, client: MlflowClient, lock: str) -> None:
        self._client, self.lock = client, lock
        self.link = _acquired(client, lock)
        self._alive_s = self.link.made_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lock")
        self._thread.start()

    def require(self) -> None:
        """Raise TimeoutError (an OSError) if another process may have taken the lock over by now."""
        if time.monotonic() - self._alive_s > FRESH_S or not _is_last(_chain(self._client, self.lock), self.link):
            raise TimeoutError(
                f"the registry answered too slowly: {self.lock} may have been given to another process, and nothing "
                f"more is changed; run the command again"
            )

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _beat(self) -> None:
        count = 0
        while not self._closed.wait(BEAT_S):
            began_s, count = time.monotonic(), count + 1
            with suppress(Exception):  # the time runs on, and `require` sees it
                self._client.set_registered_model_tag(self.link.name, "beat", str(count))
                self._alive_s = began_s


@dataclass(frozen=True, kw_only=True)
class Link:
    """A lock or the successor of one, as it was read."""

    name: str
    owner: str
    beat: str = ""
    made_s: float = 0.0
    """By this process's clock, before others could see it; 0 where it is another's."""


@contextmanager
def exclusive(client: MlflowClient, lock: str) -> Iterator[Lease]:
    """Hold `lock` for the block; waits for the present holder. Call `require` of the lease before every write."""
    lease = Lease(client, lock)
    try:
        yield lease
    finally:
        lease.close()
        _release(client, lease)


def _acquired(client: MlflowClient, lock: str) -> Link:
    seen, since, has_warned = None, time.monotonic(), False
    while True:
        chain = _chain(client, lock)
        last = chain[-1] if chain else None
        if last != seen:
            seen, since = last, time.monotonic()
        if last is None or time.monotonic() - since > STALE_S:
            link = _created(client, lock if last is None else _successor(lock, last))
            if link is not None and _stands(client, lock, link):
                return link
        if last is not None and not has_warned and time.monotonic() - since > 5 * BEAT_S:
            has_warned = True
            log.warning("%s is held by a process without a heartbeat: taken over in %.0f s", lock, STALE_S)
        time.sleep(POLL_S)


def _stands(client: MlflowClient, lock: str, link: Link) -> bool:
    """Whether the link that we have made is the lock's last.

    If the lock was released meanwhile, our link succeeds nothing and is deleted. If our link already has a successor,
    the successor deletes it: its own link refers to ours.
    """
    chain = _chain(client, lock)
    if link.name not in [each.name for each in chain]:
        client.delete_registered_model(link.name)
    return _is_last(chain, link)


def _is_last(chain: Sequence[Link], link: Link) -> bool:
    """Compares tokens too: the name of a released lock is used again, and a process that slept may meet the new one."""
    return bool(chain) and (chain[-1].name, chain[-1].owner) == (link.name, link.owner)


def _release(client: MlflowClient, lease: Lease) -> None:
    """Release the lock, unless another process has taken it over."""
    end = _created(client, _successor(lease.lock, lease.link))
    if end is not None and _stands(client, lease.lock, end):
        for link in _chain(client, lease.lock):  # the lock is free once the first is deleted
            if time.monotonic() - end.made_s > FRESH_S:
                return  # a waiting process takes over before long, and deletes these
            client.delete_registered_model(link.name)


def _successor(lock: str, link: Link) -> str:
    return f"{lock}.{link.owner}"


def _chain(client: MlflowClient, lock: str) -> list[Link]:
    """The lock and its successors; the last one is the holder's."""
    links, name = list[Link](), lock
    while (held := if_exists(client.get_registered_model, name)) is not None:
        links.append(Link(name=name, owner=str(held.tags.get("owner", "")), beat=str(held.tags.get("beat", ""))))
        name = _successor(lock, links[-1])
    return links


def _created(client: MlflowClient, name: str) -> Link | None:
    """A link of that name with a token of its own; None if there is one."""
    link = Link(name=name, owner=secrets.token_hex(8), made_s=time.monotonic())
    try:
        client.create_registered_model(name, tags={"owner": link.owner}, description="held while an alias moves")
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
            raise
        return None
    return link


def if_exists(get: Callable[..., T], *which: str) -> T | None:
    """What the client gets, None if that does not exist."""
    try:
        return get(*which)
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
