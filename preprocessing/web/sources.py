"""Image-text data as others publish them -> records: its pictures, or none, with the questions or captions.

Every format is cut into pieces that can be read alone, in an order that depends on the source only. Layouts with an
index are in indexes.py; WebDataset tars (archives.py) and Parquet (tables.py) are read file by file.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.file_system import FileSystem, file_system_of
from preprocessing.web.archives import TAR_PATTERNS, read_tar
from preprocessing.web.extra_fields import NO_EXTRA_FIELDS, ExtraFields
from preprocessing.web.indexes import INDEXES, Entry
from preprocessing.web.prediction_tasks import Questions, records
from preprocessing.web.records import WebRecord
from preprocessing.web.source_files import Folder, missing, split_files
from preprocessing.web.tables import read_parquet

Format = Literal["vqav2", "okvqa", "gqa", "coco", "easy_vqa", "jsonl", "llava", "webdataset", "parquet", "episodes"]
_RECORDS_PER_PIECE = 1024
_NO_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)  # what only this image's name can be wrong in

WHOLE_FILES: dict[str, tuple[tuple[str, ...], Callable[[FileSystem, str, str, ExtraFields], Iterator[WebRecord]]]] = {
    "webdataset": (TAR_PATTERNS, read_tar),
    "parquet": (("*.parquet",), read_parquet),
}
"""Format to the names of its files and what reads one: (filesystem, path, name in the source, what else is read) to
records."""
WITH_EXTRA_FIELDS = ("jsonl", "llava", *WHOLE_FILES)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a source that becomes one shard: the records [start, stop) of a file's index, or a file (None)."""

    name: str
    num_bytes: int
    start: int | None = None
    stop: int | None = None


@dataclass(frozen=True, kw_only=True)
class WebSource:
    """A folder of image-text data, local or a URL, read as `format` says."""

    folder: str
    format: Format
    split: str
    images: str = ""
    """Folder of the images, if they do not lie below `folder`."""
    extra: ExtraFields = NO_EXTRA_FIELDS
    """Fields read beside texts; formats that are not in WITH_EXTRA_FIELDS have none."""
    questions: Questions = field(default_factory=Questions)
    """What is asked about episodes."""
    opened_ns: int = field(default_factory=time.time_ns)
    """When it was opened: the index that a process keeps of a source is not taken for that of files changed since."""

    def pieces(self) -> tuple[Piece, ...]:
        """The pieces in the order of the source. Raises FileNotFoundError or ValueError for another layout."""
        if self.format == "episodes":
            store = episodes(self)
            sizes = [entry.bytes for entry in store.manifest.shards]
            names = [entry.file for entry in store.manifest.shards]
            return tuple(Piece(name=name, num_bytes=size) for name, size in zip(names, sizes, strict=True))
        if self.format in WHOLE_FILES:
            folder = _opened(self)
            paths = split_files(folder, *WHOLE_FILES[self.format][0])
            sizes = [folder.filesystem.size(path) for path in paths]
            return tuple(Piece(name=p[len(folder.root) + 1 :], num_bytes=s) for p, s in zip(paths, sizes, strict=True))
        count = len(_index(self))
        name = f"{self.format} {self.split}"
        starts = range(0, count, _RECORDS_PER_PIECE)
        return tuple(
            Piece(name=name, num_bytes=count, start=s, stop=min(s + _RECORDS_PER_PIECE, count)) for s in starts
        )

    def read(self, piece: Piece) -> Iterator[WebRecord]:
        """The records of a piece, in order."""
        if self.format == "episodes":
            store = episodes(self)
            names = [entry.file for entry in store.manifest.shards]
            yield from records(store, names.index(piece.name), self.questions)
            return
        filesystem, root = _root(self.folder)
        if piece.start is None:
            _, read = WHOLE_FILES[self.format]
            yield from read(filesystem, f"{root}/{piece.name}", piece.name, self.extra)
            return
        images = _root(self.images)[1] if self.images else root
        for entry in _index(self)[piece.start : piece.stop]:
            yield _with_images(filesystem, entry, images)


@lru_cache(maxsize=2)
def episodes(source: WebSource) -> EpisodeStore:
    """The store that is asked about. Raises ValueError if it is of another split."""
    store = EpisodeStore.open(source.folder, source.split)
    if store.manifest.split != source.split:
        raise ValueError(f"{source.folder} is of split {store.manifest.split!r}: give --split {store.manifest.split}")
    return store


@lru_cache(maxsize=2)
def _index(source: WebSource) -> list[Entry]:
    try:
        entries = INDEXES[source.format](_opened(source))
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{source.folder} is not laid out as {source.format} ({type(error).__name__}: {error}): "
            f"is --format the right one?"
        ) from error
    if not entries:
        raise ValueError(f"{source.folder} holds no {source.format} records of split {source.split!r}")
    return entries


def _with_images(filesystem: FileSystem, entry: Entry, root: str) -> WebRecord:
    """The record with its pictures; one that is missing is named by its path below `root`."""
    problem = entry.problem
    images = list[bytes]()
    for path in () if problem else entry.images:
        try:
            images.append(filesystem.cat_file(path))
        except (OSError, ValueError) as error:  # ValueError: a name with a character that no file's can have
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) and error.errno not in _NO_FILE:
                raise
            problem = missing(path.removeprefix(f"{root}/"))
            break
    return WebRecord(
        place=entry.place,
        images=() if problem else tuple(images),
        examples=entry.examples,
        problem=problem,
        duplicates=entry.duplicates,
    )


def _opened(source: WebSource) -> Folder:
    filesystem, root = _root(source.folder)
    its_own, images = _root(source.images) if source.images else (filesystem, root)
    if type(its_own) is not type(filesystem):
        raise ValueError(f"--images {source.images} must lie where {source.folder} lies: copy one to the other")
    return Folder(filesystem=filesystem, root=root, images=images, split=source.split, extra=source.extra)


def _root(folder: str) -> tuple[FileSystem, str]:
    filesystem, root = file_system_of(str(folder))
    if not filesystem.exists(root):
        raise FileNotFoundError(f"{folder} does not exist: give the folder of the image-text data")
    if not filesystem.isdir(root):
        raise NotADirectoryError(f"{folder} is a file: give the folder that it lies in")
    return filesystem, root.rstrip("/")
