"""WebDataset tars, plain or gzipped: neighbouring members of one key are a record.

The key of a member is its path up to the first dot of the file's name, and what follows is its extension, as the
webdataset library has it. A picture or text is known by the end of its extension, so `7.0.jpg` is a picture of key 7.
Every member is in the account: as a part of an example, in quarantine, or by its extension among those not read.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

from preprocessing.store.file_system import FileSystem
from preprocessing.web.extra_fields import NO_EXTRA_FIELDS, ExtraFields
from preprocessing.web.records import IMAGE_SUFFIXES, Identities, WebExample, WebRecord, parsed_once
from preprocessing.web.several_pictures import numbered, too_many
from preprocessing.web.texts import NOTHING_TO_LEARN, examples_of, unusable, without_picture

TAR_PATTERNS = ("*.tar", "*.tar.gz", "*.tgz")
_END_BYTES = 1024  # of zeros, that an archive ends in
_KEPT_BYTES = 1 << 16  # more than tarfile reads ahead of what it hands out
_MOST_BYTES = 1 << 28  # of a picture or text: none is larger
_READ = (*IMAGE_SUFFIXES, ".json", ".txt")
_OTHER_PICTURES = (".tif", ".tiff", ".jfif", ".jp2", ".jxl", ".heic", ".heif", ".avif", ".ppm", ".mp4", ".webm", ".avi")
_APART = "its members stand apart from each other in the archive: pack those of a key side by side"


@dataclass(frozen=True, kw_only=True)
class _Member:
    """One file of an archive, without its bytes where nothing reads them; `problem` where they cannot be had."""

    key: str
    extension: str
    data: bytes
    problem: str | None


def read_tar(filesystem: FileSystem, path: str, name: str, extra: ExtraFields = NO_EXTRA_FIELDS) -> Iterator[WebRecord]:
    """The records of an archive; those with a picture or a text alone come last, since the other may stand apart.

    Raises ValueError if the archive is cut or damaged.
    """
    runs = Counter[str]()
    known = Identities()
    incomplete = list[tuple[str, WebRecord]]()
    for members in _runs(_members(filesystem, path)):
        key = members[0].key
        record = _record(f"{name}:{key}", members, extra)
        runs[key] += 1
        if not _is_complete(record):
            incomplete.append((key, replace(record, images=())))
        elif known.judge(key, (record.images, record.problem, record.examples)) == "again":
            yield replace(record, images=(), examples=(), problem=None, duplicates=len(record.examples))
        else:
            yield record
    for key, record in incomplete:
        yield replace(record, problem=_APART) if runs[key] > 1 else record


def _runs(members: Iterator[_Member]) -> Iterator[list[_Member]]:
    """Members side by side that have one key; an extension that comes again begins another record."""
    run: list[_Member] = []
    for member in members:
        if run and (run[0].key != member.key or any(m.extension == member.extension for m in run)):
            yield run
            run = []
        run.append(member)
    if run:
        yield run


def _is_complete(record: WebRecord) -> bool:
    """Whether nothing of the record may stand elsewhere, or it is in quarantine anyway."""
    has_text = record.examples[0].problem != NOTHING_TO_LEARN
    return record.problem is not None or (bool(record.images) and has_text)


# --- A record ---


def _record(place: str, members: Sequence[_Member], extra: ExtraFields) -> WebRecord:
    pictures = _chosen(members, IMAGE_SUFFIXES) if extra.most_pictures == 1 else _of_kind(members, IMAGE_SUFFIXES)
    texts = [*_chosen(members, (".json",)), *_chosen(members, (".txt",))]
    used = [*pictures, *texts]
    problem = next((member.problem for member in used if member.problem), None)
    problem = problem or too_many(len(pictures), extra)
    unreadable = any(member.problem for member in texts)
    others = () if pictures else [m.extension for m in members if f".{m.extension}".endswith(_OTHER_PICTURES)]
    examples = None if unreadable else _examples(texts, extra, pictures=len(pictures), others=others)
    return WebRecord(
        place=place,
        images=() if problem else tuple(member.data for member in pictures),
        examples=examples or (unusable(NOTHING_TO_LEARN),),
        problem=problem or (None if examples else "its text cannot be read"),
        unread=tuple(member.extension for member in members if member not in used),
    )


def _chosen(members: Sequence[_Member], suffixes: tuple[str, ...]) -> list[_Member]:
    """The members of a kind: the one whose extension is just that, where there is only one such, else all."""
    candidates = _of_kind(members, suffixes)
    exact = [member for member in candidates if f".{member.extension}" in suffixes]
    return exact if len(exact) == 1 else candidates


def _of_kind(members: Sequence[_Member], suffixes: tuple[str, ...]) -> list[_Member]:
    return [member for member in members if f".{member.extension}".endswith(suffixes)]


def _examples(
    texts: Sequence[_Member], extra: ExtraFields, *, pictures: int, others: Sequence[str]
) -> tuple[WebExample, ...] | None:
    """What JSON members say, and captions in text members that they do not say too; None if one cannot be read.
    `others` are the extensions of pictures of kinds that are not read."""
    fields: dict[str, object] = {}
    examples: list[WebExample] = []
    captions: list[str] = []
    try:
        for member in texts:
            if member.extension.endswith("json"):
                member_fields, problem = numbered(parsed_once(member.data, member.extension), pictures)
                examples += [replace(e, problem=e.problem or problem) for e in examples_of(member_fields)]
                fields.update(member_fields)
            else:
                captions.append(member.data.decode("utf-8-sig"))
    except (ValueError, AttributeError, TypeError):
        return None
    answers = {example.answer for example in examples}
    if captions:
        examples = [example for example in examples if example.problem != NOTHING_TO_LEARN]
    examples += [example for text in captions if text not in answers for example in examples_of({"caption": text})]
    examples = list(extra.added(examples or [unusable(NOTHING_TO_LEARN)], fields))
    if pictures:
        return tuple(examples)
    lost = f"its picture is a .{others[0]}, which is not read: pack it as JPEG, PNG or WebP" if others else None
    if lost is None and fields.get("image"):
        lost = "its picture, which 'image' names, is not packed beside it"
    return tuple(replace(e, problem=e.problem or lost) for e in without_picture(fields, examples))


# --- Members ---


def _members(filesystem: FileSystem, path: str) -> Iterator[_Member]:
    """Each member of an archive but folders, one after the other."""
    try:
        with filesystem.open(path, "rb") as file:
            stream = _Stream(gzip.GzipFile(fileobj=file) if file.read(2) == b"\x1f\x8b" else file)
            file.seek(0)
            with tarfile.open(fileobj=stream, mode="r|") as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
                yield from (_member(tar, member) for member in tar if not member.isdir())
                stream.require_end(tar.offset)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is cut or no tar archive ({error}): fetch it again") from error


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> _Member:
    folder, _, base = member.name.rpartition("/")
    stem, _, extension = base.partition(".")
    is_named = bool(stem and extension)
    problem = None
    is_read = is_named and base.lower().endswith(_READ)
    if not member.isfile():
        problem = "its member is a link" if member.issym() or member.islnk() else "its member is no file"
    elif member.size > _MOST_BYTES:
        problem = f"its member has more than {_MOST_BYTES >> 20} MiB"
    extracted = tar.extractfile(member) if is_read and problem is None else None
    return _Member(
        key=(f"{folder}/{stem}" if folder else stem) if is_named else member.name,
        extension=extension.lower() if is_named else "",
        data=b"" if extracted is None else extracted.read(),
        problem=problem,
    )


class _Stream:
    """A file that is read once from its beginning, and remembers the last it gave."""

    def __init__(self, file: BinaryIO | gzip.GzipFile) -> None:
        self._file = file
        self._given = 0
        self._kept = b""

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._given += len(data)
        self._kept = (self._kept + data)[-_KEPT_BYTES:]
        return data

    def require_end(self, offset: int) -> None:
        """Raise tarfile.ReadError unless there are only zeros from `offset` on, and enough of them: tarfile takes a
        header that is cut or damaged for the end of the archive, and never looks behind it."""
        rest = self._kept[len(self._kept) - (self._given - offset) :]
        count, empty = len(rest), not any(rest)
        while data := self._file.read(1 << 20):
            count, empty = count + len(data), empty and not any(data)
        if not empty:
            raise tarfile.ReadError("it goes on behind its end")
        if count < _END_BYTES:
            raise tarfile.ReadError("it does not end in two empty blocks")
