"""WebDataset tars: every member is part of an example, in quarantine, or among those not read."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest

from preprocessing.web.archives import read_tar
from preprocessing.web.records import WebRecord
from tests.support.tiny_web import picture, png

APART = "its members stand apart from each other in the archive: pack those of a key side by side"
NEITHER = "it has neither question and answer nor a caption"
ALONE = "it is a caption without a picture"
A, B = png(1), png(2)


def packed(members: Sequence[tuple[str, bytes | tarfile.TarInfo]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def read(data: bytes, tmp_path: Path, name: str = "train.tar") -> list[WebRecord]:
    (tmp_path / name).write_bytes(data)
    return list(read_tar(fsspec.filesystem("file"), str(tmp_path / name), name))


def account(records: Sequence[WebRecord]) -> list[tuple[str, str, str | None]]:
    """(key, answer, problem) of every example."""
    found = [(record, example) for record in records for example in record.examples]
    problems = [record.problem or example.problem for record, example in found]
    return [
        (record.place.partition(":")[2], "" if problem else example.answer, problem)
        for (record, example), problem in zip(found, problems, strict=True)
    ]


def link(name: str, kind: bytes) -> tuple[str, tarfile.TarInfo]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "0.png"
    return name, info


@pytest.mark.parametrize(
    ("members", "found"),
    [
        pytest.param(
            [("a.png", A), ("b.png", B), ("a.txt", b"one"), ("b.txt", b"two")],
            [("a", "", APART), ("b", "", APART), ("a", "", APART), ("b", "", APART)],
            id="apart",
        ),
        pytest.param(
            [("a.json", b'{"question": "q", "answer": "one"}'), ("b.png", B), ("b.txt", b"two"), ("a.png", A)],
            [("b", "two", None), ("a", "", APART), ("a", "", APART)],
            id="a question whose picture comes later",
        ),
        pytest.param(
            [("a.png", A), ("a.txt", b"one"), ("a.png", B), ("a.txt", b"two")],
            [("a", "one", None), ("a", "two", None)],
            id="a key given twice",
        ),
        pytest.param(
            [("a.png", A), ("a.txt", b"one"), ("a.txt", b"two")],
            [("a", "one", None), ("a", "", APART)],
            id="an extension given twice",
        ),
        pytest.param([("x.0.jpg", A), ("x.txt", b"one")], [("x", "one", None)], id="a longer extension"),
        pytest.param([("x.JPG", A), ("x.TXT", b"\xef\xbb\xbfone")], [("x", "one", None)], id="capitals"),
        pytest.param(
            [("x.0.jpg", A), ("x.1.jpg", B), ("x.txt", b"one")],
            [("x", "", "it has 2 pictures, and an example has one")],
            id="two pictures",
        ),
        pytest.param([("x.jpg", A), ("x.seg.png", B), ("x.txt", b"one")], [("x", "one", None)], id="a mask beside it"),
        pytest.param([("x.txt", b"one")], [("x", "", ALONE)], id="a caption alone"),
        pytest.param([("x.png", A)], [("x", "", NEITHER)], id="a picture alone"),
        pytest.param([("x.png", A), ("x.txt", b" ")], [("x", "", "its caption is empty")], id="an empty caption"),
        pytest.param([("x.png", A), ("x.txt", b"\xff")], [("x", "", "its text cannot be read")], id="no UTF-8"),
        pytest.param([("x.png", A), ("x.json", b"[1]")], [("x", "", "its text cannot be read")], id="no object"),
        pytest.param(
            [("x.png", A), ("x.json", b'{"answer": "a", "question": "q", "answer": "b"}')],
            [("x", "", "its text cannot be read")],
            id="a field given twice",
        ),
        pytest.param(
            [("x.png", A), ("x.json", b'{"question": "q", "answer": "one"}'), ("x.txt", b"two")],
            [("x", "one", None), ("x", "two", None)],
            id="a question and a caption",
        ),
        pytest.param(
            [("x.png", A), ("x.json", b'{"caption": "one", "width": 3}'), ("x.txt", b"one")],
            [("x", "one", None)],
            id="the caption in both",
        ),
        pytest.param(
            [("x.json", b'{"question": "q", "answer": "one"}')], [("x", "one", None)], id="a question of words alone"
        ),
        pytest.param(
            [("x.tiff", A), ("x.json", b'{"question": "q", "answer": "one"}')],
            [("x", "", "its picture is a .tiff, which is not read: pack it as JPEG, PNG or WebP")],
            id="a question about a picture of another kind",
        ),
        pytest.param(
            [("x.json", b'{"question": "q", "answer": "one", "image": "x.jpg"}')],
            [("x", "", "its picture, which 'image' names, is not packed beside it")],
            id="a question about a picture that is not packed",
        ),
        pytest.param(
            [link("x.png", tarfile.SYMTYPE), ("x.txt", b"one")], [("x", "", "its member is a link")], id="link"
        ),
        pytest.param(
            [("0.png", A), ("0.txt", b"one"), link("x.png", tarfile.LNKTYPE), ("x.txt", b"one")],
            [("0", "one", None), ("x", "", "its member is a link")],
            id="hard link",
        ),
        pytest.param(
            [link("x.png", tarfile.FIFOTYPE), ("x.txt", b"one")], [("x", "", "its member is no file")], id="a pipe"
        ),
        pytest.param(
            [link("d.png", tarfile.DIRTYPE), ("d/x.png", A), ("d/x.txt", b"one")], [("d/x", "one", None)], id="folders"
        ),
        pytest.param(
            [("._x.png", A), ("._x.txt", b"one"), ("README", b"me")],
            [("._x.png", "", NEITHER), ("._x.txt", "", NEITHER), ("README", "", NEITHER)],
            id="names without a key",
        ),
    ],
)
def test_every_member_is_in_the_account(members: list[Any], found: list[Any], tmp_path: Path) -> None:
    records = read(packed(members), tmp_path)
    assert account(records) == found
    assert all(
        bool(record.images)
        for record in records
        for e in record.examples
        if not record.problem and not e.prompt and not e.problem
    )


def test_what_is_read_twice_counts_as_a_duplicate(tmp_path: Path) -> None:
    one = [("a.png", A), ("a.txt", b"one")]
    records = read(packed([*one, ("b.png", B), ("b.txt", b"two"), *one]), tmp_path)
    assert account(records) == [("a", "one", None), ("b", "two", None)]
    assert [record.duplicates for record in records] == [0, 0, 1]


def test_members_of_other_kinds_are_counted(tmp_path: Path) -> None:
    members = [("x.png", A), ("x.txt", b"one"), ("x.cls", b"3"), ("x.seg.png", B), ("y.npy", b""), ("README", b"")]
    records = read(packed(members), tmp_path)
    assert [record.unread for record in records] == [("cls", "seg.png"), ("npy",), ("",)]


@pytest.mark.parametrize("name", ["train.tar", "train.tar.gz", "train.tgz"])
def test_gzipped_archives(name: str, tmp_path: Path) -> None:
    data = packed([("a.png", A), ("a.txt", b"one")])
    assert account(read(gzip.compress(data), tmp_path, name)) == [("a", "one", None)]
    for cut in (gzip.compress(data)[:-9], gzip.compress(data[:-9000]), gzip.compress(data)[:-8] + bytes(8)):
        with pytest.raises(ValueError, match=r"is cut or no tar archive .*: fetch it again"):
            read(cut, tmp_path, name)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    data = bytearray(packed([(f"{n}.{kind}", b"x" * 700) for n in range(4) for kind in ("png", "txt")]))
    data[4 * 1536 + 20] ^= 1
    with pytest.raises(ValueError, match=r"is cut or no tar archive .it goes on behind its end"):
        read(bytes(data), tmp_path)


def test_archives_pasted_together_are_not_read_by_half(tmp_path: Path) -> None:
    one = packed([("a.png", A), ("a.txt", b"one")])
    with pytest.raises(ValueError, match="it goes on behind its end"):
        read(one + one, tmp_path)


def test_sparse_members_are_read(tmp_path: Path) -> None:
    """An old GNU sparse member, as `tar -S` writes one: 512 bytes of data, a hole, and the end of it."""
    info = tarfile.TarInfo("x.png")
    info.type = tarfile.GNUTYPE_SPARSE
    whole = A + bytes(1024 - len(A) % 512)
    info.size = len(whole)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, len(whole))
    header[483:495] = b"%011o\0" % len(whole)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    rest = packed([("x.txt", b"one")])
    records = read(bytes(header) + whole + bytes(-len(whole) % 512) + rest, tmp_path)
    assert account(records) == [("x", "one", None)] and records[0].images == (whole,)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_pictures_of_every_kind(kind: str, tmp_path: Path) -> None:
    suffix = {"JPEG": "jpg"}.get(kind, kind.lower())
    (record,) = read(
        packed([(f"x.{suffix}", picture(kind)), ("x.json", json.dumps({"caption": "one"}).encode())]), tmp_path
    )
    assert record.images == (picture(kind),)
