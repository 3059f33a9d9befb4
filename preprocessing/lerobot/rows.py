"""The rows of episodes in a LeRobot Parquet file, in order, reading on through row groups of any size."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.lerobot.columns import one_number_a_step
from preprocessing.lerobot.metadata import EpisodeEntry
from preprocessing.rlds import open_folder
from preprocessing.store.file_system import is_local
from preprocessing.store.shard_files import PatientFile

_BATCH_BYTES = 32 << 20
_MOST_ROWS = 1 << 16
_NUMBER = "episode_index"


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeRows:
    """The rows of one episode; `first_row` counts within the file."""

    first_row: int
    table: pa.Table


class Rows:
    """Iterating gives (entry, its rows, or in words why they cannot be read) for each of `entries`, in their order.

    Where an episode lies follows from the column episode_index, which the file itself holds: the numbers of rows in
    the metadata are only compared with it. LeRobot writes a row group an episode; others do not. A file may lack the
    columns that are `optional`.
    """

    def __init__(
        self, url: str, entries: Sequence[EpisodeEntry], columns: Sequence[str], *, optional: Collection[str] = ()
    ) -> None:
        self._url, self._entries, self._columns, self._optional = url, entries, list(columns), optional
        self._filesystem, self._path = open_folder(url)

    def __iter__(self) -> Iterator[tuple[EpisodeEntry, EpisodeRows | str]]:
        try:
            file, numbers = self._opened()
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = self._reason(error)
            yield from ((entry, reason) for entry in self._entries)
            return
        starts = np.searchsorted(numbers, [entry.index for entry in self._entries], side="left").tolist()
        stops = np.searchsorted(numbers, [entry.index for entry in self._entries], side="right").tolist()
        there = [name for name in self._optional if name in file.schema_arrow.names]
        columns = list(dict.fromkeys([*self._columns, *there]))
        window = _Window(file, columns, first=min(starts, default=0), stop=max(stops, default=0))
        for entry, start, stop in zip(self._entries, starts, stops, strict=True):
            yield entry, self._rows(window, entry, start, stop)

    def _opened(self) -> tuple[pq.ParquetFile, np.ndarray]:
        """The file and the episode of each of its rows. Raises ValueError for a file that has other columns."""
        source: Any = self._path if is_local(self._filesystem) else PatientFile(self._filesystem, self._path)
        file = pq.ParquetFile(source)
        lacking = [name for name in (*self._columns, _NUMBER) if name not in file.schema_arrow.names]
        if lacking:
            raise ValueError(f"it has no column {lacking[0]!r}")
        numbers = one_number_a_step(_NUMBER, file.read([_NUMBER], use_threads=False)[_NUMBER], "int64")
        if (np.diff(numbers) < 0).any():
            raise ValueError("its rows are not in the order of episode_index")
        return file, numbers

    def _rows(self, window: _Window, entry: EpisodeEntry, start: int, stop: int) -> EpisodeRows | str:
        if stop - start != entry.length:
            return f"the metadata declare {entry.length} frames, {self._url} holds {stop - start}"
        try:
            return EpisodeRows(first_row=start, table=window.rows(start, stop))
        except (OSError, pa.ArrowException) as error:
            return self._reason(error)

    def _reason(self, error: Exception) -> str:
        """Raises an OSError of the network, which says nothing of the data, again."""
        if isinstance(error, OSError) and not is_local(self._filesystem):
            raise error
        return f"{self._url} cannot be read ({' '.join(str(error).split())})"


class _Window:
    """Rows of a file by number, ascending. Row groups are read on in batches of some megabytes; after damage, each
    episode is read by itself, so that damage costs the episodes that it lies in and no others."""

    def __init__(self, file: pq.ParquetFile, columns: list[str], *, first: int, stop: int) -> None:
        self._file, self._columns = file, columns
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        self._ends = np.cumsum(sizes)
        groups = self._groups(first, stop)
        self._first = int(self._ends[groups[0]] - sizes[groups[0]]) if groups else 0  # row number of the first kept
        self._kept: pa.Table | None = None
        self._batches = file.iter_batches(
            batch_size=self._batch_rows(), row_groups=groups, columns=columns, use_threads=False
        )
        self._damaged = False

    def rows(self, start: int, stop: int) -> pa.Table:
        """Raises OSError or ArrowException for rows that are damaged."""
        if not self._damaged:
            with suppress(OSError, pa.ArrowException, StopIteration):
                return self._read_on(start, stop)
            self._damaged = True
        groups = self._groups(start, stop)
        table = self._file.read_row_groups(groups, columns=self._columns, use_threads=False)
        before = int(self._ends[groups[0] - 1]) if groups and groups[0] else 0
        return table.slice(start - before, stop - start).select(self._columns)

    def _read_on(self, start: int, stop: int) -> pa.Table:
        kept = self._kept if self._kept is not None else pa.table(next(self._batches))
        while self._first + kept.num_rows < stop:
            done = min(max(start - self._first, 0), kept.num_rows)
            self._first += done
            kept = pa.concat_tables([kept.slice(done), pa.table(next(self._batches))])
        self._kept = kept
        return kept.slice(start - self._first, stop - start).select(self._columns)

    def _groups(self, start: int, stop: int) -> list[int]:
        """The row groups that rows start <= row < stop lie in."""
        if stop <= start:
            return []
        return list(range(int(np.searchsorted(self._ends, start, "right")), int(np.searchsorted(self._ends, stop)) + 1))

    def _batch_rows(self) -> int:
        metadata = self._file.metadata
        total = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        return max(1, min(_MOST_ROWS, _BATCH_BYTES * metadata.num_rows // max(total, 1)))
