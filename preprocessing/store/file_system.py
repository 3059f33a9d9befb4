"""The part of fsspec's file systems that preprocessing uses, with the types that fsspec itself does not declare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO, Literal, Protocol, TypedDict, cast, overload

import fsspec


class FileInfo(TypedDict):
    """One entry of a detailed listing; `size` in bytes."""

    name: str
    size: int
    type: str


class FileSystem(Protocol):
    """Local disk or object store. Paths come without their protocol, as `file_system_of` returns them."""

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes: ...

    def open(self, path: str, mode: Literal["rb"] = "rb") -> BinaryIO: ...

    def size(self, path: str) -> int: ...

    def exists(self, path: str) -> bool: ...

    def isdir(self, path: str) -> bool: ...

    @overload
    def ls(self, path: str, detail: Literal[False]) -> list[str]: ...

    @overload
    def ls(self, path: str, detail: Literal[True]) -> list[FileInfo]: ...

    def glob(self, path: str) -> list[str]: ...

    def find(self, path: str) -> list[str]: ...

    def makedirs(self, path: str, exist_ok: bool = False) -> None: ...

    def rm(self, path: str, recursive: bool = False) -> None: ...

    def put_file(self, lpath: str, rpath: str) -> None: ...

    def get_file(self, rpath: str, lpath: str) -> None: ...

    def unstrip_protocol(self, name: str) -> str: ...


def file_system_of(url: str, options: Mapping[str, str] | None = None) -> tuple[FileSystem, str]:
    """(file system, path in it) of a local path or a URL. Raises ImportError if the protocol's package is missing."""
    filesystem, path = fsspec.core.url_to_fs(url, **(options or {}))
    return cast(FileSystem, filesystem), path
