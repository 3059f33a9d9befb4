"""Folders that are made for what is written into them, and go with it if it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def made_for(folder: Path) -> Iterator[None]:
    """Make a local folder for the block. An error in it removes this folder and those above it that were made, as far
    as nothing is in them."""
    absent = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # another process writes there too
            for each in absent:
                each.rmdir()
        raise
