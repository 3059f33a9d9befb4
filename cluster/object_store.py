"""Files in object stores that go away and come back: reads and writes wait for them, and whatever fails is an OSError.

The libraries below fsspec raise kinds of their own (botocore's EndpointConnectionError is no OSError), and an outage of
a minute must not end a training of days at its next checkpoint. A store that has answered in this process is waited for
OUTAGE_S seconds, one that has not (a mistyped address) FIRST_CONTACT_S. preprocessing/store/file_system.py does the
same for stores of data: the two packages may not import each other.
"""

from __future__ import annotations

import errno
import logging
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import fsspec

T = TypeVar("T")

log = logging.getLogger(__name__)

_KINDS = "(?:datasets|models|spaces|buckets)/"
_REPOSITORY = re.compile(rf"hf://(?:{_KINDS})?(?!{_KINDS})[\w.-]+/[\w.-]+(@[^/]+)?(/.*)?")

OUTAGE_S, FIRST_CONTACT_S = 300.0, 1.0
_first_contact_s = FIRST_CONTACT_S
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0
_WARN_AFTER_S = 3.0
_REQUESTS = frozenset(
    ("cat_file", "pipe_file", "put_file", "get_file", "find", "glob", "info", "ls", "makedirs", "rm", "rm_file", "size")
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


class StoreAway(ConnectionError):
    """The store has not answered within the time that it is waited for."""


def open_files(url: str) -> tuple[Any, str]:
    """(file system, path in it) of a local path, which is fsspec's own, or of a URL, which waits as said above. Raises
    ValueError, before anything is asked of the hub, for an address there that names no repository."""
    if url.startswith("hf://") and not _REPOSITORY.fullmatch(url):
        raise ValueError(
            f"{url} names nothing of the Hugging Face hub: give hf://OWNER/MODEL for a model, or "
            f"hf://datasets/OWNER/NAME for a dataset"
        )
    files, path = fsspec.core.url_to_fs(url)
    return (files if is_local(files) else RetryingFiles(files)), path


def wait_from_the_start() -> None:
    """For a process that works for another which has reached its stores: it waits for them even at first contact."""
    global _first_contact_s
    _first_contact_s = OUTAGE_S


def is_local(files: Any) -> bool:
    return "file" in (files.protocol if isinstance(files.protocol, tuple) else (files.protocol,))


class StoreRefused(PermissionError):
    """The store has answered, and will say the same again."""


class RetryingFiles:
    """A remote file system of fsspec whose requests wait for a store that is away.

    `open` is left out: a file that is read bit by bit cannot be waited for.
    """

    def __init__(self, files: Any) -> None:
        self._files = files
        files.has_answered = getattr(files, "has_answered", False)  # fsspec hands out one object per store

    @property
    def plain(self) -> Any:
        """fsspec's own file system."""
        return self._files

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_files", "open"):
            raise AttributeError(name)
        value = getattr(self._files, name)
        return partial(self._with_retries, name, value) if name in _REQUESTS else value

    def __reduce__(self) -> tuple[type[RetryingFiles], tuple[Any]]:
        return RetryingFiles, (self._files,)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """In one request: s3fs asks for the size first, to read large files in pieces at once."""
        is_s3 = hasattr(self._files, "max_concurrency")
        options = {"max_concurrency": 1} if is_s3 and start is None and end is None else {}
        return self._with_retries("cat_file", self._files.cat_file, path, start=start, end=end, **options)

    def exists(self, path: str) -> bool:
        """Whether it is there. fsspec's own says no of a store that does not answer."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def isdir(self, path: str) -> bool:
        return self.exists(path) and self.info(path)["type"] == "directory"

    def _with_retries(self, name: str, request: Callable[..., T], *arguments: Any, **options: Any) -> T:
        path = arguments[name == "put_file"]  # there the local path comes first
        where = self._files.unstrip_protocol(str(path))
        began, wait_s, warned = time.monotonic(), _FIRST_WAIT_S, False
        while True:
            try:
                answer = request(*arguments, **options)
            except Exception as caught:
                error = _behind(caught)
                if name in _REMOVALS and wait_s > _FIRST_WAIT_S and isinstance(error, FileNotFoundError):
                    return None  # type: ignore[return-value]  # it was removed before, and the answer was lost
                reason = " ".join(str(error).split()) or type(error).__name__
                if not _is_outage(error):
                    self._files.has_answered |= isinstance(error, _ANSWERS)
                    if _is_refusal(error):
                        raise StoreRefused(_REFUSED.format(where=where, reason=reason)) from error
                    raise
                waited_s = time.monotonic() - began
                if waited_s + wait_s > (OUTAGE_S if self._files.has_answered else _first_contact_s):
                    known = self._files.has_answered
                    remedy = f"it was waited for {waited_s:.0f} s" if known else "check the address and the credentials"
                    raise StoreAway(f"{where} cannot be reached ({reason}): {remedy}") from error
                if waited_s > _WARN_AFTER_S and not warned:
                    warned = True
                    log.warning("%s does not answer (%s): it is waited for", where, reason)
            else:
                self._files.has_answered = True
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
