"""Shards of finished stores as parts of another: linked where they stay whole, else written anew.

A link is a hard link on one disk, a copy inside the object store, and a plain copy elsewhere. Whatever exists under its
name is taken to be done: names say what is in a file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.conversion.shard_moments import ShardMoments
from preprocessing.store.episode_store import EpisodeStore, ShardWriter, atomic_write
from preprocessing.store.file_system import FileSystem, file_system_of, is_one_store
from preprocessing.store.shard_files import is_local
from preprocessing.store.statistics import Moments
from preprocessing.store.store_manifest import ShardEntry


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """A shard of a store, or with `episodes` (their numbers in the shard, in order) a part of it."""

    store: EpisodeStore
    shard: int
    episodes: tuple[int, ...] | None = None

    @property
    def entry(self) -> ShardEntry:
        return self.store.manifest.shards[self.shard]

    @property
    def num_episodes(self) -> int:
        return len(self.entry.episode_lengths if self.episodes is None else self.episodes)

    def own_name(self) -> str:
        """A file name that follows from the content."""
        part = "" if self.episodes is None else f":{self.episodes}"
        return f"shard-{hashlib.sha256(f'{self.entry.sha256}{part}'.encode()).hexdigest()[:16]}.parquet"

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of each episode, in order."""
        chosen = range(len(self.entry.episode_lengths)) if self.episodes is None else self.episodes
        table = self.store.read_shard(self.shard, columns)
        ends = np.cumsum(self.entry.episode_lengths)
        for episode in chosen:
            length = self.entry.episode_lengths[episode]
            yield table.slice(int(ends[episode]) - length, length)


@dataclass(frozen=True, kw_only=True, eq=False)
class PieceSummary:
    """What a piece adds to the manifest."""

    moments: Moments
    state_moments: Moments | None
    instructions: np.ndarray
    """int64, sorted: the ids in use."""


def summary_of(piece: Piece) -> PieceSummary:
    """Read the narrow columns of a piece."""
    moments = ShardMoments(piece.store.contract.action.size, len(piece.store.manifest.proprio.names))
    used = [np.empty(0, np.int64)]
    for table in piece.tables([*moments.columns, "instruction"]):
        moments.add(table)
        used.append(np.unique(table["instruction"].to_numpy()))
    actions, states = moments.finish()
    return PieceSummary(moments=actions, state_moments=states, instructions=np.unique(np.concatenate(used)))


def placed(piece: Piece, root: str, name: str, *, temporary: str) -> ShardEntry:
    """The piece as file `name` in folder `root`; its entry there. `temporary` is a folder beside it."""
    filesystem, folder = file_system_of(root)
    if piece.episodes is None:
        _link(piece.store.filesystem, piece.store.shards[piece.shard].path, filesystem, f"{folder}/{name}")
        return replace(piece.entry, file=name)
    if not filesystem.exists(f"{folder}/{name}"):
        _write(piece, filesystem, f"{folder}/{name}", temporary)
    return _entry(piece, filesystem, folder, name)


def _link(source: FileSystem, path: str, filesystem: FileSystem, target: str) -> None:
    """The same bytes at `target`, which is on another file system at worst."""
    if path == target or filesystem.exists(target):
        return
    if is_local(source) and is_local(filesystem):
        partial = f"{target}.{uuid.uuid4().hex}.partial"
        try:
            with suppress(OSError):  # another disk, or a disk without links
                os.link(path, partial)
            if not os.path.exists(partial):
                shutil.copyfile(path, partial)
            os.replace(partial, target)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial)
    elif is_one_store(source, filesystem):
        filesystem.cp_file(path, target)
    else:
        with source.open(path) as file, atomic_write(filesystem, target, temporary=os.path.dirname(target)) as out:
            while block := file.read(1 << 22):
                out.write(block)


def _write(piece: Piece, filesystem: FileSystem, path: str, temporary: str) -> None:
    """The kept episodes, numbered anew; a row group of the source in memory at a time."""
    store, shard = piece.store, piece.store.shards[piece.shard]
    kept = np.zeros(len(shard.episode_lengths), bool)
    kept[list(piece.episodes or ())] = True
    number_of = np.cumsum(kept, dtype=np.int32) - 1
    episode_N = np.repeat(np.arange(len(kept)), shard.episode_lengths)
    with store.filesystem.open(shard.path) as file:
        schema = pq.read_schema(file)
    with (
        atomic_write(filesystem, path, temporary=temporary) as file,
        ShardWriter(file, schema, row_group_rows=shard.row_group_rows) as writer,
    ):
        for group in range(-(-shard.rows // shard.row_group_rows)):
            first = group * shard.row_group_rows
            episodes = episode_N[first : first + shard.row_group_rows]
            if not kept[episodes].any():
                continue
            table = store.read_rows(piece.shard, group, schema.names).filter(pa.array(kept[episodes]))
            place = schema.get_field_index("episode")
            numbered = pa.array(number_of[episodes[kept[episodes]]], pa.int32())
            writer.append(table.set_column(place, schema.field(place), numbered).cast(schema))


def _entry(piece: Piece, filesystem: FileSystem, folder: str, name: str) -> ShardEntry:
    """Of a file that was written anew. Its source is named as before, its records are those that are left."""
    digest, num_bytes = hashlib.sha256(), 0
    with filesystem.open(f"{folder}/{name}") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            num_bytes += len(block)
    lengths = tuple(piece.entry.episode_lengths[episode] for episode in piece.episodes or ())
    left_out = len(piece.entry.episode_lengths) - len(lengths)
    records = f"{piece.entry.source_sha256_of_crcs}:{piece.episodes}"
    return replace(
        piece.entry,
        file=name,
        rows=sum(lengths),
        bytes=num_bytes,
        sha256=digest.hexdigest(),
        source_records=piece.entry.source_records - left_out,
        source_sha256_of_crcs=hashlib.sha256(records.encode()).hexdigest(),
        episode_lengths=lengths,
    )
