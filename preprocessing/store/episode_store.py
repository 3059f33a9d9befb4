"""The episode store: one row per step in Parquet, an instruction table, and a manifest that is written last.

`<root>/<dataset>/<version>/<split>/` holds `shard-00000-of-0000N.parquet` (one a source shard or part of a large one,
episodes in order, the frames of an episode adjacent, row groups of a fixed number of rows), `instructions.parquet`,
`quarantine.jsonl` and `manifest.json`. A folder without a manifest is no store. Every path may be local or a URL that
fsspec knows.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.store.file_system import FileSystem, file_system_of, is_local
from preprocessing.store.integrity import require_whole
from preprocessing.store.json_files import taken_apart
from preprocessing.store.json_records import read_record
from preprocessing.store.manifest_file import MANIFEST, REMEDY, ManifestFile, find_manifest
from preprocessing.store.shard_files import ShardFiles, reaching, with_retries
from preprocessing.store.store_manifest import ShardEntry, StoreManifest
from rt_models.spec import EMBEDDING_WIDTH, MAIN_CAMERA, Contract, DatasetContract, of_role

SCHEMA_VERSION = 1
ROW_GROUP_ROWS = 128
INSTRUCTIONS, QUARANTINE = "instructions.parquet", "quarantine.jsonl"

INSTRUCTION_SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "text": pa.string(),
        "encoder": pa.string(),
        "embedding": pa.list_(pa.float32(), EMBEDDING_WIDTH),
    }
)


# --- Columns ---


@dataclass(frozen=True, kw_only=True)
class SourceField:
    """An action field of the source kept verbatim; `shape` is that of one step, flattened in the store."""

    path: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def column(self) -> str:
        return f"source/{self.path}"

    @property
    def arrow(self) -> pa.DataType:
        value = pa.from_numpy_dtype(np.dtype(self.dtype))
        return pa.list_(value, int(np.prod(self.shape))) if self.shape else value


@dataclass(frozen=True, kw_only=True)
class StoreLayout:
    """The columns of a store. `cameras` are roles; the main one is "image"."""

    cameras: tuple[str, ...]
    action_size: int
    proprio_size: int
    source: tuple[SourceField, ...]

    def schema(self) -> pa.Schema:
        columns: dict[str, pa.DataType] = {
            "episode": pa.int32(),
            "record": pa.int64(),
            "step": pa.int32(),
            "is_first": pa.bool_(),
            "is_last": pa.bool_(),
            "is_terminal": pa.bool_(),
            "flags": pa.uint32(),
            "reward": pa.float32(),
            "instruction": pa.int64(),
            **{image_column(role): pa.binary() for role in self.cameras},
            "action": pa.list_(pa.float32(), self.action_size),
        }
        if self.proprio_size:
            columns["proprio"] = pa.list_(pa.float32(), self.proprio_size)
        return pa.schema(columns | {field.column: field.arrow for field in self.source})


def image_column(role: str) -> str:
    """The column of a camera: "image" for the main one, "image_<role>" for another."""
    return of_role("image", role)


def fixed_lists(values: np.ndarray) -> pa.FixedSizeListArray:
    """An array (N, ...) as N lists of its flattened rows."""
    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])


def binaries(values: Sequence[bytes]) -> pa.Array | pa.ChunkedArray:
    """An array of byte strings, copied once: Arrow's own builder grows, and copies what it has, time after time."""
    ends = np.cumsum([0, *map(len, values)])
    if ends[-1] >= 2**31:  # more than one array can hold
        return pa.array(values, pa.binary())
    buffers = [None, pa.py_buffer(ends.astype(np.int32).tobytes()), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.binary(), len(values), buffers)


def instruction_id(text: str, vector: bytes = b"") -> int:
    """The first 8 bytes of SHA-256 over the text and, where episodes ship vectors, the vector's bytes."""
    digest = hashlib.sha256(text.encode() + b"\0" + vector if vector else text.encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


# --- Writing ---


@contextmanager
def atomic_write(filesystem: FileSystem, path: str, *, temporary: str) -> Iterator[HashingFile]:
    """A file that appears at `path` whole or not at all. `temporary` is a folder of the same file system.

    Object stores publish an upload when it is complete; it is spooled on the local disk until then.
    """
    local = is_local(filesystem)
    partial = f"{temporary if local else tempfile.gettempdir()}/{uuid.uuid4().hex}.partial"
    try:
        with open(partial, "xb") as file:
            yield HashingFile(file)
        if local:
            os.replace(partial, path)
        else:
            with reaching(path):
                filesystem.put_file(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
            raise OSError(error.errno, error.strerror, path if local else partial) from error
        raise
    finally:
        Path(partial).unlink(missing_ok=True)


class HashingFile:
    """A sequential binary file for writers that hashes what passes through."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self.num_bytes, self.closed = file, hashlib.sha256(), 0, False

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.num_bytes += memoryview(data).nbytes
        return self._file.write(data)

    def tell(self) -> int:
        return self.num_bytes

    def flush(self) -> None:
        self._file.flush()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


class ShardWriter:
    """Writes tables as one Parquet file whose row groups all have `row_group_rows` rows, but for the last.

    Encoded images are stored as they are; the other columns are compressed with zstd. Memory: one row group.
    """

    def __init__(self, file: HashingFile, schema: pa.Schema, *, row_group_rows: int = ROW_GROUP_ROWS) -> None:
        self._pending = []
        self._rows = 0
        self._row_group_rows = row_group_rows
        pictures = (pa.binary(), pa.list_(pa.binary()))
        encoded = {_leaf(column, kind) for column in schema.names if (kind := schema.field(column).type) in pictures}
        leaves = [_leaf(column, schema.field(column).type) for column in schema.names]
        self._writer = pq.ParquetWriter(
            pa.PythonFile(file, mode="w"),
            schema,
            compression={leaf: "NONE" if leaf in encoded else "ZSTD" for leaf in leaves},  # type: ignore[arg-type]
            use_dictionary=False,
            write_statistics=False,
        )
        self.rows = 0

    def append(self, table: pa.Table) -> None:
        self._pending.append(table)
        self._rows += table.num_rows
        self.rows += table.num_rows
        if self._rows >= self._row_group_rows:
            self._flush(self._rows - self._rows % self._row_group_rows)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self._flush(self._rows)
        self._writer.close()

    def _flush(self, rows: int) -> None:
        if rows:
            table = pa.concat_tables(self._pending)
            self._writer.write_table(table.slice(0, rows), row_group_size=self._row_group_rows)
            self._pending = [table.slice(rows)]
            self._rows -= rows


def _leaf(path: str, kind: pa.DataType) -> str:
    """The Parquet path of a column's values."""
    nested = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind)
    return _leaf(f"{path}.list.element", kind.value_type) if nested else path


# --- Reading ---


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """One Parquet file: `episode_lengths` int32 (E,) in steps, in row order."""

    path: str
    rows: int
    row_group_rows: int
    episode_lengths: np.ndarray
    sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeStore:
    """A finished store. `instruction_ids` int64 (N,) are sorted; texts and `embeddings` float32 (N, 512) follow."""

    root: str
    manifest: StoreManifest
    manifest_sha256: str
    contract: Contract
    shards: tuple[Shard, ...]
    instruction_ids: np.ndarray
    instruction_texts: list[str]
    embeddings: np.ndarray
    filesystem: FileSystem
    _files: ShardFiles = field(repr=False)

    @staticmethod
    def open(path: str, split: str | None = None) -> EpisodeStore:
        """Open the store at `path`, or else the only one (of `split`, if given) below it.

        Raises FileNotFoundError or ValueError with the remedy if there is none, or more than one.
        """
        filesystem, root = file_system_of(str(path))
        found = find_manifest(filesystem, root.rstrip("/"), str(path), split)
        return EpisodeStore.described(filesystem, found, str(path))

    @staticmethod
    def described(filesystem: FileSystem, found: ManifestFile, path: str) -> EpisodeStore:
        """The store of this manifest, in error messages `path`."""
        root, data = found.root, found.data
        if "kind" in data:
            raise ValueError(f"{path} is a store of image-text examples, and robot episodes are needed here")
        if (version := data.get("schema_version")) is None:
            raise ValueError(f"{path} is no store of robot episodes: its {MANIFEST} has no schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{path} is a store of schema {version}, this code reads {SCHEMA_VERSION}: preprocess again"
            )
        with taken_apart(f"{root}/{MANIFEST}", remedy=REMEDY):
            manifest = read_record(StoreManifest, data)
            shards = tuple(_shard(root, entry, manifest.row_group_rows) for entry in manifest.shards)
        file = f"{root}/{manifest.instructions.file}"
        table = _instruction_table(with_retries(lambda: filesystem.cat_file(file), what=file), file)
        return EpisodeStore(
            root=root if is_local(filesystem) else filesystem.unstrip_protocol(root),
            manifest=manifest,
            manifest_sha256=found.sha256,
            contract=manifest.contract,
            shards=shards,
            instruction_ids=table["id"].to_numpy(),
            instruction_texts=table["text"].to_pylist(),
            embeddings=embedding_matrix(table),
            filesystem=filesystem,
            _files=ShardFiles(filesystem, [shard.path for shard in shards], [e.bytes for e in manifest.shards]),
        )

    @property
    def dataset(self) -> DatasetContract:
        """The dataset's side of the contract."""
        return self.contract.datasets[0]

    @property
    def name(self) -> str:
        """The name of the dataset."""
        return self.dataset.name

    @property
    def num_steps(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def num_episodes(self) -> int:
        return sum(len(shard.episode_lengths) for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes of the Parquet files of steps."""
        return sum(entry.bytes for entry in self.manifest.shards)

    def read_rows(self, shard: int, row_group: int, columns: Sequence[str]) -> pa.Table:
        """One row group of one shard: rows row_group * row_group_rows and on, in order."""
        return self._read(shard, range(row_group, row_group + 1), columns)

    def read_shard(self, shard: int, columns: Sequence[str]) -> pa.Table:
        """Every row of one shard; meant for narrow columns."""
        return self._read(shard, range(-(-self.shards[shard].rows // self.shards[shard].row_group_rows)), columns)

    def read_row_groups(self, shard: int, row_groups: range, columns: Sequence[str]) -> pa.Table:
        """The rows of neighbouring row groups of one shard, in order."""
        return self._read(shard, row_groups, columns)

    def read_episode(self, shard: int, episode: int, columns: Sequence[str]) -> pa.Table:
        """The rows of one episode, by its number within the shard."""
        rows = self.rows_of(shard, episode)
        group_rows = self.shards[shard].row_group_rows
        first = rows.start // group_rows
        table = self._read(shard, range(first, -(-rows.stop // group_rows)), columns)
        return table.slice(rows.start - first * group_rows, len(rows))

    def rows_of(self, shard: int, episode: int) -> range:
        """The places of an episode's rows in its shard."""
        lengths = self.shards[shard].episode_lengths
        stop = int(lengths[: episode + 1].sum())
        return range(stop - int(lengths[episode]), stop)

    def _read(self, shard: int, row_groups: range, columns: Sequence[str]) -> pa.Table:
        """The rows of neighbouring row groups; all reading goes through here."""
        return self._files.read(shard, columns, row_groups)

    def frame_error(
        self, shard: int, episode: int, step: int, problem: str, *, camera: str = MAIN_CAMERA
    ) -> ValueError:
        """What to raise for a stored frame that cannot be used; `episode` counts within the shard, from 0."""
        taken_by = "" if camera == MAIN_CAMERA else f" of camera {camera}"
        name = f"the frame{taken_by} at step {step} of episode {episode} of {self.shards[shard].path}"
        return ValueError(f"{name} {problem}: {REMEDY}, which leaves out episodes with frames that cannot be read")

    def verify(self) -> None:
        """Read every file and compare checksums and row counts. Raises ValueError naming the first that differs."""
        require_whole(self, checksum_bytes=float("inf"))


def _instruction_table(blob: bytes, path: str) -> pa.Table:
    try:
        return pq.read_table(pa.BufferReader(blob)).cast(INSTRUCTION_SCHEMA)
    except (OSError, ValueError) as error:  # Arrow's are both
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}): {REMEDY}") from None


def embedding_matrix(table: pa.Table) -> np.ndarray:
    """float32 (N, 512) of an instruction table."""
    flat = table["embedding"].combine_chunks().flatten()
    return np.array(flat, np.float32).reshape(table.num_rows, EMBEDDING_WIDTH)


def _shard(root: str, entry: ShardEntry, row_group_rows: int) -> Shard:
    lengths = np.array(entry.episode_lengths, np.int32)
    if lengths.sum() != entry.rows or (lengths < 1).any() or row_group_rows < 1:
        raise ValueError(
            f"{entry.file} has {entry.rows} rows in groups of {row_group_rows}, and episodes of {lengths.sum()} "
            f"steps: {REMEDY}"
        )
    return Shard(
        path=f"{root}/{entry.file}",
        rows=entry.rows,
        row_group_rows=row_group_rows,
        episode_lengths=lengths,
        sha256=entry.sha256,
    )
