"""The list of a checkpoint's files, sizes and SHA-256 digests. Written last: with it a checkpoint is complete."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

MANIFEST = "manifest.json"
FORMAT = 1

Metadata: TypeAlias = dict[str, Any]
"""A JSON object: what the training loop keeps with a checkpoint, opaque to this package."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a checkpoint: name relative to its folder, with forward slashes; size in bytes."""

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.name).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise ValueError(f"{self.name!r} is not a file of a checkpoint: it lies outside its folder")

    @staticmethod
    def of(path: Path, folder: Path) -> FileEntry:
        return FileEntry(name=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256_of(path))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The files of one checkpoint, the step at which it was taken and what the training loop says about it."""

    step: int
    metadata: Metadata
    files: tuple[FileEntry, ...]

    def to_bytes(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()

    @staticmethod
    def from_bytes(data: bytes) -> Manifest:
        """Raises ValueError if this is not a manifest of this format."""
        try:
            fields = json.loads(data)
            if fields["format"] != FORMAT:
                raise ValueError(f"manifest format {fields['format']}, this version reads {FORMAT}")
            files = tuple(FileEntry(**entry) for entry in fields["files"])
            return Manifest(step=fields["step"], metadata=fields["metadata"], files=files)
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a checkpoint manifest: {error!r}") from error

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_entry(entry: FileEntry, folder: Path, *, of: str) -> None:
    """Raise ValueError unless the file of the checkpoint `of` is in the folder as it was written."""
    path = folder / entry.name
    if not path.is_file() or path.stat().st_size != entry.size or sha256_of(path) != entry.sha256:
        raise ValueError(
            f"{of}/{entry.name} is not the file that was saved, its size or SHA-256 is another: remove {of} to use the "
            f"checkpoint before it"
        )
