"""A file system in memory that is away when told to, with the error of S3's library, which is no OSError."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import fsspec
from botocore.exceptions import EndpointConnectionError
from fsspec.implementations.memory import MemoryFileSystem

_REQUESTS = ("cat_file", "pipe_file", "put_file", "get_file", "find", "info", "ls", "makedirs", "rm", "rm_file")


class AwayFileSystem(MemoryFileSystem):
    """`away://...`; every request fails until the clock shows `back_at`. `refused` counts the requests that failed, and
    `asked` all of them."""

    protocol = "away"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    clock = staticmethod(time.monotonic)
    back_at = 0.0
    refused = 0
    asked = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("away://").strip("/")

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return partial(_if_there, value) if name in _REQUESTS else value


def _if_there(request: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    AwayFileSystem.asked += 1
    if AwayFileSystem.clock() < AwayFileSystem.back_at:
        AwayFileSystem.refused += 1
        raise EndpointConnectionError(endpoint_url="http://store:9000")
    return request(*arguments, **options)


@contextmanager
def away_files() -> Iterator[type[AwayFileSystem]]:
    """The file system, registered and empty; `leave(seconds)` lets it go away."""
    fsspec.register_implementation("away", AwayFileSystem, clobber=True)
    AwayFileSystem.back_at, AwayFileSystem.refused, AwayFileSystem.clock = 0.0, 0, staticmethod(time.monotonic)
    try:
        yield AwayFileSystem
    finally:
        AwayFileSystem.back_at = 0.0
        AwayFileSystem.store.clear()
        AwayFileSystem.clear_instance_cache()


def leave(seconds: float) -> None:
    AwayFileSystem.back_at = AwayFileSystem.clock() + seconds
