"""One command at a time in an output folder: two trainings or sweeps in one would overwrite each other's files.

The lock is the operating system's (flock): it ends with the process that holds it, however that ends. An output in an
object store has none. `filelock` does not name the holder, and on a file system without flock it falls back to a file
that outlives a killed process.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

LOCK = ".lock"
_POLL_S = 0.2
_UNKNOWN_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems


@contextmanager
def exclusive_output(output: str, *, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock for the block. Raises BlockingIOError (an OSError), naming the holder, if it is not free in time.

    A folder that was made for the lock is removed if nothing else was written into it.
    """
    if "://" in output:
        yield
        return
    folder = Path(output)
    made = not folder.exists()
    descriptor = _locked(folder / LOCK, time.monotonic() + patience_s)
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        os.close(descriptor)
        if made:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _locked(path: Path, until: float) -> int:
    """A descriptor that holds the lock."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # who was inside has taken the folder away, in this very moment
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if _is_ours(path, descriptor, until):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                    return descriptor
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)
            time.sleep(_POLL_S)


def _is_ours(path: Path, descriptor: int, until: float) -> bool:
    """Whether the lock is held now. False means that another try is worth it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if time.monotonic() < until:
            return False
        holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
        raise BlockingIOError(
            f"{path.parent} is in use by {holder}: wait until that has ended, or give another --output"
        ) from None
    except OSError as error:
        if error.errno not in _UNKNOWN_HERE:
            raise
        log.warning("%s cannot be locked (%s): let no second command write there", path.parent, error.strerror)
    return _is_at(path, descriptor)  # not where who was inside has taken the file away since it was opened


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
