"""Small files that survive a kill: written whole or not at all, or read without a last line that was cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from cluster.object_store import open_files
from preprocessing.store.json_files import JsonObject


def write_whole(path: str, text: str) -> None:
    """Write a file whole or not at all: on a file system by renaming; an upload to an object store is atomic."""
    if "://" in path:
        files, name = open_files(path)
        files.pipe_file(name, text.encode())
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    try:
        partial.write_text(text)
    except OSError:  # the disk is full
        partial.unlink(missing_ok=True)
        raise
    partial.replace(target)


def whole_lines(path: str) -> Iterator[JsonObject]:
    """The lines of a file of JSON lines, local or remote, without those that a crash has cut; none without a file."""
    try:
        files, name = open_files(path)
        text = files.cat_file(name).decode()
    except FileNotFoundError:
        return
    for line in text.rpartition("\n")[0].splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # cut by a crash, before a later attempt wrote on
            continue
