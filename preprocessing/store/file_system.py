"""The part of fsspec's file systems that preprocessing uses, with the types that fsspec itself does not declare.

Remote ones wait for a store that is away, in reads and in writes, and whatever fails there is an OSError: botocore's
EndpointConnectionError, for one, is none. cluster/object_store.py does the same for checkpoints and all else that a
run writes: the two packages may not import each other.
"""

from __future__ import annotations

import errno
import logging
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TypedDict, TypeVar, cast, overload

import fsspec
from fsspec.implementations.local import LocalFileSystem

T = TypeVar("T")

log = logging.getLogger(__name__)

_KINDS = "(?:datasets|models|spaces|buckets)/"
_OF_DATA = re.compile(  # a model's repository may hold a file of scores
    rf"hf://(?:(?:datasets|spaces|buckets)/[\w.-]+/[\w.-]+(@[^/]+)?(/.*)?|(?!{_KINDS})[\w.-]+/[\w.-]+(@[^/]+)?/.+)"
)

OUTAGE_S = 300.0
"""A store that has answered this process before is waited for so long,"""
FIRST_CONTACT_S = 1.0
"""and another, whose address may be mistyped, so long."""
_first_contact_s = FIRST_CONTACT_S
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0
_WARN_AFTER_S = 3.0
_REQUESTS = frozenset(
    ("cat_file", "put_file", "get_file", "cp_file", "find", "glob", "info", "ls", "makedirs", "rm", "size")
)
_REMOVALS = ("rm", "rm_file")
_ANSWERS = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_PASSING = (408, 409, 425, 429)  # of HTTP: what passes by itself
_PASSING_CODES = (  # of S3 and what speaks its language, with status 400 or 403: broken uploads, and too many requests
    *("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"),
    *("Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestThrottled", "TooManyRequestsException"),
)
_REFUSED = "{where} is refused by its store ({reason}): check the bucket, its region, and what the credentials allow"
_FINAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG)


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

    def rm(self, path: str | list[str], recursive: bool = False) -> None: ...

    def put_file(self, lpath: str, rpath: str) -> None: ...

    def cp_file(self, path1: str, path2: str) -> None: ...

    def get_file(self, rpath: str, lpath: str) -> None: ...

    def get(self, rpath: str, lpath: str, recursive: bool = False) -> None: ...

    def unstrip_protocol(self, name: str) -> str: ...

    def invalidate_cache(self) -> None: ...


def file_system_of(url: str, options: Mapping[str, str] | None = None) -> tuple[FileSystem, str]:
    """(file system, path in it) of a local path or a URL. Raises ImportError if the protocol's package is missing, and
    ValueError, before anything is asked of the hub, for an address there that names no dataset."""
    if url.startswith("hf://") and not _OF_DATA.fullmatch(url):
        raise ValueError(
            f"{url} names no dataset of the Hugging Face hub: give hf://datasets/OWNER/NAME and the folder in it "
            f"(hf://OWNER/NAME is a model)"
        )
    filesystem, path = fsspec.core.url_to_fs(url, **(options or {}))
    return cast(FileSystem, filesystem if is_local(filesystem) else RetryingFileSystem(filesystem)), path


def absolute(path: str) -> str:
    """A local path made absolute, since workers run in other folders."""
    return path if "://" in path else str(Path(path).absolute())


def wait_from_the_start() -> None:
    """For a process that works for another which has reached its stores: it waits for them even at first contact."""
    global _first_contact_s
    _first_contact_s = OUTAGE_S


def is_local(filesystem: object) -> bool:
    return isinstance(filesystem, LocalFileSystem)


def is_one_store(one: FileSystem, other: FileSystem) -> bool:
    """Whether both are the same object store, which then copies within itself."""
    return isinstance(one, RetryingFileSystem) and isinstance(other, RetryingFileSystem) and one.plain is other.plain


class StoreAway(ConnectionError):
    """The store has not answered within the time that it is waited for."""


class StoreRefused(PermissionError):
    """The store has answered, and will say the same again."""


class RetryingFileSystem:
    """A remote file system whose requests, all but `open`, wait for a store that is away."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem
        filesystem.has_answered = getattr(filesystem, "has_answered", False)  # fsspec hands out one object per store

    @property
    def plain(self) -> Any:
        """fsspec's own file system, one object for each store and account."""
        return self._filesystem

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_filesystem":
            raise AttributeError(name)
        value = getattr(self._filesystem, name)
        return partial(self._with_retries, name, value) if name in _REQUESTS else value

    def __reduce__(self) -> tuple[type[RetryingFileSystem], tuple[Any]]:
        return RetryingFileSystem, (self._filesystem,)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """In one request: s3fs asks for the size first, to read large files in pieces at once."""
        is_s3 = hasattr(self._filesystem, "max_concurrency")
        options = {"max_concurrency": 1} if is_s3 and start is None and end is None else {}
        return self._with_retries("cat_file", self._filesystem.cat_file, path, start=start, end=end, **options)

    def exists(self, path: str) -> bool:
        """Whether it is there. fsspec's own says no of a store that does not answer."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def isdir(self, path: str) -> bool:
        try:
            return self.info(path)["type"] == "directory"
        except FileNotFoundError:
            return False

    def _with_retries(self, name: str, request: Callable[..., T], *arguments: Any, **options: Any) -> T:
        path = arguments[name == "put_file"]  # there the local path comes first
        where = self._filesystem.unstrip_protocol(path if isinstance(path, str) else path[0])
        began, wait_s, warned = time.monotonic(), _FIRST_WAIT_S, False
        while True:
            try:
                answer = request(*arguments, **options)
            except Exception as caught:
                error = _behind(caught)
                if name in _REMOVALS and wait_s > _FIRST_WAIT_S and isinstance(error, FileNotFoundError):
                    return None  # type: ignore[return-value]  # it was removed before, and the answer was lost
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                if not _is_outage(error):
                    self._filesystem.has_answered |= isinstance(error, _ANSWERS)
                    if _is_refusal(error):
                        raise StoreRefused(_REFUSED.format(where=where, reason=reason)) from error
                    raise
                waited_s = time.monotonic() - began
                known = self._filesystem.has_answered
                if waited_s + wait_s > (OUTAGE_S if known else _first_contact_s):
                    remedy = f"it was waited for {waited_s:.0f} s" if known else "check the address and the credentials"
                    raise StoreAway(f"{where} cannot be reached ({reason}): {remedy}") from error
                if waited_s > _WARN_AFTER_S and not warned:
                    warned = True
                    log.warning("%s does not answer (%s): it is waited for", where, reason)
            else:
                self._filesystem.has_answered = True
                if warned:
                    log.warning("%s answers again", where)
                return answer
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _behind(error: Exception) -> Exception:
    """The error behind a FileNotFoundError that fsspec raises because a web server does not answer; else `error`."""
    met = error.__cause__
    return met if isinstance(error, FileNotFoundError) and isinstance(met, Exception) and _is_outage(met) else error


def _is_outage(error: Exception) -> bool:
    """Whether to ask again: what the store refuses, a full disk here, and mistakes of ours stay as they are."""
    if _is_refusal(error):
        return False
    if isinstance(error, OSError):
        return not isinstance(error, _ANSWERS) and error.errno not in _FINAL
    return type(error).__module__ != "builtins" and not isinstance(error, ValueError)


def _is_refusal(error: Exception) -> bool:
    """Whether the store itself says no, by the status of its answer: 3xx is another region, 4xx a matter of rights,
    names or quotas. fsspec turns codes that it does not know into errors that look like a broken disk's."""
    if isinstance(error, FileNotFoundError | FileExistsError):
        return False
    if isinstance(error, PermissionError):
        return error.filename is None  # that of a file of this machine has a name
    chain = [error, error.__cause__, getattr(error.__cause__, "__cause__", None)]
    if any(type(link).__module__ == "aiohttp.http_exceptions" for link in chain):
        return False  # an answer that was cut off or garbled on its way, to which aiohttp gives status 400
    status = _status_of(error) or _status_of(error.__cause__)
    return 300 <= status < 500 and status not in _PASSING


def _status_of(error: BaseException | None) -> int:
    """The HTTP status that an error tells, or 0: botocore's in a dict, huggingface_hub's and requests' in a response
    (one of requests is false), aiohttp's in `status`, gcsfs' in `code`, apart from its 403, which is a word."""
    if isinstance(error, OSError) and str(error).startswith("Forbidden:"):
        return 403
    answer: Any = getattr(error, "response", None)
    if isinstance(answer, dict):
        passes = answer.get("Error", {}).get("Code") in _PASSING_CODES
        return 0 if passes else answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    told = (getattr(answer, "status_code", None), getattr(error, "status", None), getattr(error, "code", None))
    return next((int(status) for status in map(str, told) if status.isdecimal()), 0)
