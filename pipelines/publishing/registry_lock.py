"""One at a time among all who use a registry, with nothing but what MLflow's registries offer: unique model names.

A lock is a registered model of its name; its tags say who holds it, and by a count that it is alive. A holder that has
shown no life for STALE_S is succeeded, never removed: the successor makes `<lock>.<token of the dead>`, which only one
can, and which stands for the lock from then on. Tokens are random, so that a name never comes to mean something else
between a look and a deletion; and who gives the lock back succeeds itself first, so that nobody does meanwhile.

MLflow cannot refuse a write by who sends it. So a holder asks `Lease.require` before each: it may write only for a time
after its last sign of life which, together with the longest that MLflow waits for an answer, is shorter than STALE_S.
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
    """Whether a registered model of this name is a lock, or what a process that died has left of one."""
    return name.endswith(LOCKED) or f"{LOCKED}." in name


class Lease:
    """A lock that is held. Shows signs of life until it is closed."""

    def __init__(self, client: MlflowClient, lock: str) -> None:
        self._client, self.lock = client, lock
        self.link = _acquired(client, lock)
        self._alive_s = self.link.made_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lock")
        self._thread.start()

    def require(self) -> None:
        """Raise TimeoutError (an OSError) unless nobody can have taken the lock for abandoned by now."""
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
    """Alone with `lock`. Call `require` of what this yields before every write. Waits for who is inside."""
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
            log.warning("%s is held by a process that shows no life: taken over in %.0f s", lock, STALE_S)
        time.sleep(POLL_S)


def _stands(client: MlflowClient, lock: str, link: Link) -> bool:
    """Whether the link that we have made is the lock's last.

    One that succeeds nobody, since the lock was given back meanwhile, is taken away. One that has a successor already
    is the successor's to take away: without it, theirs would hang on nothing.
    """
    chain = _chain(client, lock)
    if link.name not in [each.name for each in chain]:
        client.delete_registered_model(link.name)
    return _is_last(chain, link)


def _is_last(chain: Sequence[Link], link: Link) -> bool:
    """By its token too: the lock's own name, given back, is the next one's, as a process that slept may find it."""
    return bool(chain) and (chain[-1].name, chain[-1].owner) == (link.name, link.owner)


def _release(client: MlflowClient, lease: Lease) -> None:
    """Give the lock back, unless somebody has succeeded us: then it is theirs."""
    end = _created(client, _successor(lease.lock, lease.link))
    if end is not None and _stands(client, lease.lock, end):
        for link in _chain(client, lease.lock):  # from the first one's deletion on the lock is free
            if time.monotonic() - end.made_s > FRESH_S:
                return  # who waits succeeds us before long, and clears this up
            client.delete_registered_model(link.name)


def _successor(lock: str, link: Link) -> str:
    return f"{lock}.{link.owner}"


def _chain(client: MlflowClient, lock: str) -> list[Link]:
    """The lock and its successors as far as there are any; the last one holds it."""
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
