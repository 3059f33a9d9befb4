"""Image-text data as Parquet, as on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.store.file_system import FileSystem
from preprocessing.web.extra_fields import NO_EXTRA_FIELDS, ExtraFields
from preprocessing.web.records import Identities, WebRecord, not_its_own
from preprocessing.web.several_pictures import PICTURE_FIELDS, pictured
from preprocessing.web.texts import TEXT_FIELDS, examples_of, question_id, without_picture

_BATCH_ROWS = 128


def read_parquet(
    filesystem: FileSystem, path: str, name: str, extra: ExtraFields = NO_EXTRA_FIELDS
) -> Iterator[WebRecord]:
    """One record per row: an `image` of {bytes, path} or plain bytes, or several (`several_pictures`), and texts as
    `examples_of` reads them.

    A row with the question id, the image and the texts of one before it in the file is a duplicate.
    """
    known = Identities()
    for number, fields in enumerate(_rows(filesystem, path, extra)):
        place = f"{name}:{number}"
        identity = question_id(fields)
        several = pictured(fields, extra)
        fields = fields if several is None else several.fields
        images, problem = _images((fields.get("image"),) if several is None else several.pictures)
        problem = problem if several is None else several.problem or problem
        examples = extra.added(examples_of(fields), fields)
        if not images and problem is None:
            examples = without_picture(fields, examples)
        verdict = known.judge(identity, (images, problem, examples))
        if verdict == "again":
            yield WebRecord(place=place, images=(), examples=(), duplicates=len(examples))
            continue
        problem = not_its_own(identity) if verdict == "other" else problem
        yield WebRecord(place=place, images=images, examples=examples, problem=problem)


def _images(cells: Sequence[object]) -> tuple[tuple[bytes, ...], str | None]:
    """The encoded images in the cells, or why there are none; neither for an empty cell."""
    images = list[bytes]()
    for cell in cells:
        image, problem = _image(cell)
        if problem is None and image is None and len(cells) > 1:
            problem = "one of its images is empty"
        if problem is not None:
            return (), problem
        images += [] if image is None else [image]
    return tuple(images), None


def _image(value: object) -> tuple[bytes | None, str | None]:
    """The encoded image in a cell, or why there is none; neither for an empty cell."""
    if value is None:
        return None, None
    encoded = value.get("bytes") if isinstance(value, Mapping) else value
    if isinstance(encoded, bytes):
        return encoded, None
    named = value.get("path") if isinstance(value, Mapping) else value
    if isinstance(named, str) and "://" in named:
        return None, "its image is an address, not bytes: download the pictures into the column"
    kind = "path" if isinstance(value, str | Mapping) else type(value).__name__
    return None, f"its image is a {kind}, not bytes"


def _rows(filesystem: FileSystem, path: str, extra: ExtraFields) -> Iterator[dict[str, object]]:
    """The columns that are read of each row; of others that may name a picture, only that they are there."""
    try:
        with filesystem.open(path, "rb") as file:
            table = pq.ParquetFile(file)
            names = table.schema_arrow.names
            pictures = ("image",) if extra.most_pictures == 1 else PICTURE_FIELDS
            read_if_there = dict.fromkeys((*pictures, "question_id", *TEXT_FIELDS, *extra.names()))
            wanted = [name for name in read_if_there if name in names]
            twice = next((name for name in wanted if names.count(name) > 1), None)
            if twice is not None:
                raise OSError(f"it has the column {twice!r} twice")
            others = {name: True for name in names if name not in wanted}
            read = 0
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                read += batch.num_rows
                yield from (others | row for row in batch.to_pylist())
            if wanted and read != table.metadata.num_rows:
                raise OSError(f"{read} rows of {table.metadata.num_rows}")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or no Parquet file ({error}): fetch it again") from error
