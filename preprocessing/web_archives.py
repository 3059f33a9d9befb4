"""Image-text data whose files are read whole: WebDataset tars, and Parquet as on the Hugging Face hub."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.web_records import IMAGE_SUFFIXES, WebRecord, examples_of

_TAR_END_BYTES = 1024


def _read_tar(filesystem: Any, path: str, name: str) -> Iterator[WebRecord]:
    """WebDataset: neighbouring members of one key are a record; .json or .txt beside an image."""
    key, members = None, {}
    for member, data in _tar_members(filesystem, path):
        folder, _, base = member.rpartition("/")
        stem, _, suffix = base.partition(".")
        if key is not None and key != (folder, stem):
            yield _tar_record(f"{name}:{key[1]}", members)
            members = {}
        key = (folder, stem)
        members[suffix.lower()] = data
    if key is not None:
        yield _tar_record(f"{name}:{key[1]}", members)


def _tar_members(filesystem: Any, path: str) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each member of an archive, one after the other; nothing in one that is a link."""
    end = filesystem.tail(path, _TAR_END_BYTES)
    if len(end) < _TAR_END_BYTES or any(end):  # tarfile takes a cut header for the end
        raise ValueError(f"{path} is cut or no tar archive (it does not end in two empty blocks): fetch it again")
    try:
        with filesystem.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                extracted = tar.extractfile(member) if member.isfile() else None
                if not member.isdir():
                    yield member.name, b"" if extracted is None else extracted.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is cut or no tar archive ({error}): fetch it again") from error


def _tar_record(place: str, members: dict[str, bytes]) -> WebRecord:
    image = next((data for suffix, data in members.items() if f".{suffix}" in IMAGE_SUFFIXES), None)
    try:
        fields = json.loads(members["json"]) if "json" in members else {}
        examples = examples_of({"caption": members["txt"].decode()} if "txt" in members else fields)
    except (ValueError, AttributeError, RecursionError):
        return WebRecord(place=place, image=image, examples=(), problem="its text cannot be read")
    return WebRecord(place=place, image=image, examples=examples)


def _read_parquet(filesystem: Any, path: str, name: str) -> Iterator[WebRecord]:
    """Hugging Face Parquet: an `image` of {bytes, path} or plain bytes, and texts as `examples_of` reads them."""
    for number, fields in enumerate(_parquet_rows(filesystem, path)):
        image, problem = fields.get("image"), None
        held = image.get("bytes") if isinstance(image, Mapping) else image
        if image is not None and not isinstance(held, bytes):
            kind = "path" if isinstance(image, str | Mapping) else type(image).__name__
            held, problem = None, f"its image is a {kind}, not bytes"
        yield WebRecord(place=f"{name}:{number}", image=held, examples=examples_of(fields), problem=problem)


def _parquet_rows(filesystem: Any, path: str) -> Iterator[dict[str, Any]]:
    try:
        with filesystem.open(path, "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=128):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged or no Parquet file ({error}): fetch it again") from error


WHOLE_FILES: dict[str, tuple[str, Callable[[Any, str, str], Iterator[WebRecord]]]] = {
    "webdataset": ("tar", _read_tar),
    "parquet": ("parquet", _read_parquet),
}
"""Format to the suffix of its files and what reads one: (filesystem, path, name in the source) to records."""
