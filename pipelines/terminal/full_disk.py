"""Which path ran out of room: the operating system's "No space left on device" mostly comes without one.

torch, safetensors, pyarrow, SQLite and Ray each raise classes of their own, so errors are recognised by their text; the
path is then the one of the command's folders that has no room left.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

_PHRASES = ("no space left on device", "disk is full", "disk quota exceeded", "not enough space")
_LEAST = 16 * 2**20  # bytes; with less the disk counts as full, since a larger file has just failed


def full_disk(error: BaseException, words: Sequence[str]) -> str | None:
    """One sentence that names the full path, or None if `error` is about something else. `words`: the command's."""
    chain = list(_chain(error))
    if not any(_is_full(one) for one in chain):
        return None
    named = [str(one.filename) for one in chain if isinstance(one, OSError) and one.filename and _is_full(one)]
    path = next(iter([*named, *_without_room(words)]), None)
    if path is None:
        return "the disk is full, or a quota is used up: free space or write elsewhere"
    free = shutil.disk_usage(_existing(Path(path))).free
    return f"the disk is full at {path} ({free / 1e6:.0f} MB are free): free space there or write elsewhere"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(phrase in str(error).lower() for phrase in _PHRASES)


def _without_room(words: Sequence[str]) -> Iterator[str]:
    """The local paths of the command line, then default folders, whose file system has no room."""
    paths = [value for word in words if (value := word.partition("=")[2] or word) and "://" not in value]
    for path in [*paths, "runs", ".", tempfile.gettempdir(), "/dev/shm"]:
        if path and not path.startswith("-") and _is_tight(Path(path)):
            yield str(Path(path).absolute())


def _is_tight(path: Path) -> bool:
    try:
        return shutil.disk_usage(_existing(path)).free < _LEAST
    except OSError:
        return False


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    while not os.path.lexists(path):
        path = path.parent
    return path
