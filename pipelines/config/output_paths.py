"""Where a command writes, checked before hours of work: a folder where no file is, a file where no folder is."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.config.arguments import UsageError, absolute
from preprocessing.store.manifest_file import MANIFEST


def output_folder(path: str, flag: str = "--output") -> str:
    """`path` made absolute. Raises UsageError where a file stands in its place, or in that of a folder above it, and
    where a store lies."""
    path = absolute(path)
    if "://" in path:
        return path
    _require_folder(path, _nearest(Path(path)), flag)
    if Path(path, MANIFEST).exists():
        raise UsageError(f"{flag} {path} holds a store: give a folder of its own")
    return path


def require_output_file(path: str | None, flag: str) -> None:
    """Raise UsageError, without making anything, where a local file cannot be written at `path`; None is no file."""
    if path is None or "://" in absolute(path):
        return
    if Path(path).is_dir():
        raise UsageError(f"{flag} {path} is a folder: give a file in it")
    above = _nearest(Path(path).absolute().parent)
    _require_folder(str(Path(path).absolute().parent), above, flag)
    if not os.access(path if Path(path).exists() else above, os.W_OK):
        raise UsageError(f"{flag} {path} cannot be written: give a file in a folder that you may write in")


def _nearest(path: Path) -> Path:
    """The path, or what is there of the folders above it."""
    return next(each for each in (path, *path.parents) if os.path.lexists(each))


def _require_folder(path: str, there: Path, flag: str) -> None:
    if there.is_dir():
        return
    if str(there) == path:
        raise UsageError(f"{flag} {path} is a file: give a folder, a new one or one that is there")
    raise UsageError(f"{flag} {path} cannot be made, {there} is a file: give another folder")
