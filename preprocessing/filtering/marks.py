"""What a filter has to know of every example before it can choose: one small Parquet file a shard of the store.

Score, language, and the signatures of the pictures, found out where the shard is read; a picture that cannot be decoded
is a problem of all its examples. A model's score of several pictures is the mean of those of each with the text.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.conversion.shard_report import ShardCounts
from preprocessing.filtering.languages import language_of
from preprocessing.filtering.picture_signature import THUMBNAIL_NUMBERS, signature
from preprocessing.filtering.scorers import MODELS, DualEncoder, PairScorer, scorer_parts
from preprocessing.filtering.selection import FURTHER, NO_PICTURE, Examples
from preprocessing.store.episode_store import atomic_write
from preprocessing.store.file_system import FileSystem, file_system_of
from preprocessing.store.manifest_file import PROGRESS
from preprocessing.store.shard_files import with_retries
from preprocessing.store.web_store import WebStore, pictures_of

NO_SCORE = "it has no score"
_NOTHING_TO_SCORE = "it has no picture to score"

MARKS_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "example": pa.int32(),
        "score": pa.float64(),
        "language": pa.string(),
        "text": pa.uint64(),
        "bits": pa.uint64(),
        "thumbnail": pa.binary(),
        "further": pa.binary(),
        "problem": pa.string(),
    }
)


@dataclass(frozen=True, kw_only=True)
class MarkTask:
    """What all shards share: the store, where marks go, and how pairs are scored."""

    store: str
    root: str
    scorer: str


def marks_name(index: int) -> str:
    """A shard's marks in the progress folder."""
    return f"{index:05d}-marks.parquet"


@lru_cache(maxsize=2)
def opened(store: str) -> WebStore:
    """The store, once a process."""
    return WebStore.open(store)


def mark_shard(task: MarkTask, index: int) -> ShardCounts:
    """Write the marks of shard `index`."""
    store = opened(task.store)
    rows = store.shards[index].rows
    model = _model(task.scorer)
    group_rows = store.shards[index].row_group_rows
    marks: list[dict[str, Any]] = []
    for group in range(-(-rows // group_rows)):
        table = store.read_rows(index, group, store.schema.names)
        pictures = [pictures_of(cell) for cell in table[store.picture_column].to_pylist()]
        table = table.drop_columns(store.picture_column)
        marks += _marks(table, pictures, group * group_rows, model, of_column=task.scorer == "column")
    filesystem, root = file_system_of(task.root)
    progress = f"{root}/{PROGRESS}"
    with atomic_write(filesystem, f"{progress}/{marks_name(index)}", temporary=progress) as file:
        pq.write_table(pa.Table.from_pylist(marks, schema=MARKS_SCHEMA), pa.PythonFile(file, mode="w"))
    return ShardCounts(episodes=len(marks), rows=rows)


def _model(scorer: str) -> PairScorer | None:
    kind, path = scorer_parts(scorer)
    return DualEncoder(folder=path) if kind in MODELS else None


def _marks(
    table: pa.Table, pictures: Sequence[tuple[bytes, ...]], first: int, model: PairScorer | None, *, of_column: bool
) -> list[dict[str, Any]]:
    """The marks of the examples of a row group whose first row is row `first` of its shard."""
    marks: list[dict[str, Any]] = []
    scored: list[tuple[dict[str, Any], tuple[bytes, ...], str]] = []
    for place, row in enumerate(table.to_pylist()):
        seen, problem = _signatures(pictures[place])
        for number, (prompt, answer) in enumerate(zip(row["prompt"], row["answer"], strict=True)):
            text = f"{prompt} {answer}".strip()
            given = row["language"][number] if "language" in row else None
            score = row["score"][number] if of_column and "score" in row else None
            missing = NO_SCORE if of_column and (score is None or not math.isfinite(score)) else None
            mark = {
                "row": first + place,
                "example": number,
                "score": score,
                "language": given or language_of(text),
                "text": _text_key(prompt, answer),
                **seen,
                "problem": problem or missing,
            }
            if model is not None and problem is None:
                if pictures[place]:
                    scored.append((mark, pictures[place], text))
                else:
                    mark["problem"] = _NOTHING_TO_SCORE
            marks.append(mark)
    if model is not None:
        pairs = [(picture, text) for _, seen, text in scored for picture in seen]
        found = iter(model.scores([picture for picture, _ in pairs], [text for _, text in pairs]))
        for mark, seen, _ in scored:
            mark["score"] = score = sum(islice(found, len(seen))) / len(seen)
            mark["problem"] = None if math.isfinite(score) else "its score is not finite"
    return marks


def _signatures(pictures: Sequence[bytes]) -> tuple[dict[str, Any], str | None]:
    """The columns of a row's pictures: the signature of the first, and those of the others one after the other."""
    nothing = {"bits": None, "thumbnail": None, "further": None}
    try:
        seen = [signature(picture) for picture in pictures]
    except ValueError as error:
        return nothing, f"its image cannot be decoded ({error})"
    if not seen:
        return nothing, None
    further = b"".join(each.bits.to_bytes(8, "little") + each.thumbnail for each in seen[1:])
    return {"bits": seen[0].bits, "thumbnail": seen[0].thumbnail, "further": further or None}, None


def _text_key(prompt: str, answer: str) -> int:
    """Equal for texts that differ in case and spaces only."""
    words = "\0".join(" ".join(text.casefold().split()) for text in (prompt, answer))
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big")


# --- All marks together ---


@dataclass(frozen=True, kw_only=True)
class Marks:
    """The examples of a store, and of each its shard, its row there, its number there, and its problem or None."""

    examples: Examples
    shard_N: np.ndarray
    row_N: np.ndarray
    number_N: np.ndarray
    problems: Sequence[str | None]

    def scored(self, score_N: np.ndarray) -> Marks:
        """With scores from elsewhere; those that are not finite are missing."""
        problems = [
            problem or (None if finite else NO_SCORE)
            for problem, finite in zip(self.problems, np.isfinite(score_N), strict=True)
        ]
        usable_N = np.array([problem is None for problem in problems], bool)
        examples = replace(self.examples, score_N=np.where(usable_N, score_N, 0.0), usable_N=usable_N)
        return replace(self, examples=examples, problems=problems)


def read_marks(filesystem: FileSystem, progress: str, count: int) -> Marks:
    """The marks of all `count` shards, in order."""
    tables = [_read(filesystem, f"{progress}/{marks_name(index)}") for index in range(count)]
    shard_N = np.repeat(np.arange(count), [table.num_rows for table in tables])
    table = pa.concat_tables(tables)
    row_N, problems = table["row"].to_numpy(), table["problem"].to_pylist()
    has_picture = table["bits"].is_valid().to_numpy()
    begins = np.ones(len(shard_N), bool)
    begins[1:] = (shard_N[1:] != shard_N[:-1]) | (row_N[1:] != row_N[:-1])
    first = np.flatnonzero(begins & has_picture)
    picture_N = np.where(has_picture, np.cumsum(begins & has_picture) - 1, NO_PICTURE)
    thumbnails = b"".join(table["thumbnail"].take(first).to_pylist())
    further = enumerate(table["further"].take(first).to_pylist())
    examples = Examples(
        usable_N=np.array([problem is None for problem in problems], bool),
        score_N=table["score"].fill_null(0.0).to_numpy(),
        language_N=np.array(table["language"].to_pylist(), object),
        picture_N=picture_N,
        text_N=table["text"].to_numpy(),
        bits_P=table["bits"].take(first).to_numpy(),
        thumbnails_PK=np.frombuffer(thumbnails, np.uint8).reshape(-1, THUMBNAIL_NUMBERS),
        further={picture: np.frombuffer(blob, FURTHER) for picture, blob in further if blob},
    )
    return Marks(
        examples=examples, shard_N=shard_N, row_N=row_N, number_N=table["example"].to_numpy(), problems=problems
    )


def _read(filesystem: FileSystem, path: str) -> pa.Table:
    """Raises OSError for what cannot be read, not ValueError: it says nothing of the store, and `claimed` would take
    the marks of all other shards away for it."""
    blob = with_retries(lambda: filesystem.cat_file(path), what=path)
    try:
        table = pq.read_table(pa.BufferReader(blob))
        if "further" not in table.column_names:  # written before a row could have several pictures
            table = table.append_column("further", pa.nulls(table.num_rows, pa.binary()))
        return table.select(MARKS_SCHEMA.names).cast(MARKS_SCHEMA)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise OSError(f"{path} cannot be read ({error}): delete this file and run rtp filter again") from None
