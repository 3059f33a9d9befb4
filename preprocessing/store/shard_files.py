"""The Parquet files of a store. Reads are tried again: a network that fails now and then does not end a run of days,
nor does a store that is away for minutes (file_system.py)."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import cachetools
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.store.file_system import FileSystem, StoreAway, is_local

T = TypeVar("T")

ATTEMPTS = 6
_FIRST_WAIT_S = 0.1  # doubled from attempt to attempt: 3 seconds in all
_OPEN_FILES = 64
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, StoreAway)


@contextmanager
def reaching(what: str) -> Iterator[None]:
    """Around the first contact with a place: errors of an object store's own library become an OSError."""
    try:
        yield
    except Exception as error:
        if type(error).__module__ == "builtins" or isinstance(error, ValueError | ConnectionError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise OSError(f"{what} cannot be reached ({reason}): check the address and the credentials") from error


def with_retries(read: Callable[[], T], *, what: str) -> T:
    """`read()`, again after a failure. Raises OSError naming `what` when the last attempt has failed too.

    Any exception counts but those of a store that has been waited for already (file_system.py): answers that are too
    short, and a network folder's errors.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return read()
        except _FINAL:
            raise
        except Exception as error:
            if attempt == ATTEMPTS:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise OSError(f"{what} cannot be read, {ATTEMPTS} attempts failed, the last with {reason}") from error
            time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1))
    raise AssertionError


def open_with_retries(filesystem: FileSystem, path: str, *, ahead_bytes: int = 0, num_bytes: int | None = None) -> Any:
    """A file to read from beginning to end, as an object with read, seek and close; a remote one is a PatientFile."""
    if is_local(filesystem):
        return open(path, "rb")
    return PatientFile(filesystem, path, ahead_bytes=ahead_bytes, num_bytes=num_bytes)


class PatientFile:
    """A remote file, read by ranges, each of them with_retries and whole. What Arrow needs of a Python file, no more.

    With `ahead_bytes` a read fetches at least so many, and what follows in them is served from memory; a read of the
    file's end fetches the last `tail_bytes` in the same way. `num_bytes`: its size, if that is known.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        path: str,
        *,
        ahead_bytes: int = 0,
        tail_bytes: int = 0,
        num_bytes: int | None = None,
    ) -> None:
        self._filesystem = filesystem
        self._path = path
        self._place = 0
        self.closed = False
        self._size = with_retries(lambda: int(filesystem.size(path)), what=path) if num_bytes is None else num_bytes
        self._ahead_bytes, self._tail_bytes = ahead_bytes, tail_bytes
        self._ahead = b""
        self._ahead_from = 0

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._place + size, self._size)
        data = self._fetched(self._place, stop) if stop > self._place else b""
        self._place += len(data)
        return data

    def _fetched(self, start: int, stop: int) -> bytes:
        if not self._ahead_from <= start <= stop <= self._ahead_from + len(self._ahead):
            is_end = stop == self._size and self._tail_bytes > 0
            if not is_end and not self._ahead_bytes:
                return with_retries(lambda: self._range(start, stop), what=self._path)
            first = max(min(start, self._size - self._tail_bytes), 0) if is_end else start
            last = min(max(stop, start + self._ahead_bytes), self._size)
            self._ahead, self._ahead_from = with_retries(lambda: self._range(first, last), what=self._path), first
        return self._ahead[start - self._ahead_from : stop - self._ahead_from]

    def forget(self) -> None:
        """Let go of what was read ahead."""
        self._ahead, self._ahead_from = b"", 0

    def _range(self, start: int, stop: int) -> bytes:
        data = self._filesystem.cat_file(self._path, start=start, end=stop)
        if len(data) != stop - start:
            raise EOFError(f"{len(data)} of {stop - start} bytes came, from byte {start} on")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True
        self.forget()

    def __enter__(self) -> PatientFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ShardFiles:
    """Parquet files of a store by number: all footers are kept, at most 64 files are open. Threads may share it.

    num_bytes: their sizes by the manifest, which need not be asked for then.
    """

    def __init__(self, filesystem: FileSystem, paths: Sequence[str], num_bytes: Sequence[int]) -> None:
        self._filesystem = filesystem
        self._paths, self._num_bytes = paths, num_bytes
        self._footers: dict[int, pq.FileMetaData] = {}
        self._files: cachetools.LRUCache[int, pq.ParquetFile] = cachetools.LRUCache(_OPEN_FILES)
        self._locks: dict[int, threading.Lock] = defaultdict(threading.Lock)
        self._opening = threading.Lock()
        self._footer_bytes = 0  # the largest seen: the next file's is asked for in one request

    def read(self, number: int, columns: Sequence[str], row_groups: Sequence[int] | None = None) -> pa.Table:
        """The columns of some row groups of one file, or of all, in order. Raises OSError naming the file."""
        with self._locks[number], self._named(number):
            file = self._open(number)
            if row_groups is None:
                return file.read(columns=list(columns))
            return file.read_row_groups(list(row_groups), columns=list(columns))

    def num_rows(self, number: int) -> int:
        """Rows of one file, by its footer. Raises OSError naming the file."""
        with self._locks[number], self._named(number):
            return self._open(number).metadata.num_rows

    @contextmanager
    def _named(self, number: int) -> Iterator[None]:
        """Arrow's complaints do not say which file they are about."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            if self._paths[number] in str(error):
                raise
            reason = " ".join(str(error).split())
            raise OSError(f"{self._paths[number]} cannot be read ({reason}): is it whole?") from error

    def _open(self, number: int) -> pq.ParquetFile:
        with self._opening:
            if number in self._files:
                return self._files[number]
        path = self._paths[number]
        source: Any = path
        if not is_local(self._filesystem):
            source = PatientFile(
                self._filesystem, path, tail_bytes=self._footer_bytes, num_bytes=self._num_bytes[number]
            )
        file = pq.ParquetFile(source, metadata=self._footers.get(number), pre_buffer=True)
        if isinstance(source, PatientFile):
            source.forget()
        with self._opening:
            self._footer_bytes = max(self._footer_bytes, file.metadata.serialized_size + 8)  # its length and a mark
            self._footers[number] = file.metadata
            self._files[number] = file
        return file
