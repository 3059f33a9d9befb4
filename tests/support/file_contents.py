"""The files of a folder as a dictionary, to compare two folders byte for byte."""

from __future__ import annotations

from pathlib import Path


def file_contents(root: Path) -> dict[str, bytes]:
    """{path below `root`: content} of every file."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
