"""Several episodes of a store, read one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.parallel_reads import in_parallel


def read_episodes(store: EpisodeStore, places: Sequence[tuple[int, int]], columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of each (shard, episode) of `places`, which ascend, in turn, read ahead by threads. A row group in which
    several of the episodes lie is read once."""
    rows = [store.rows_of(*place) for place in places]
    group_rows = [store.shards[shard].row_group_rows for shard, _ in places]
    groups = [range(r.start // size, -(-r.stop // size)) for r, size in zip(rows, group_rows, strict=True)]
    first_unread = [of.start for of in groups]
    for number in range(1, len(places)):
        if places[number - 1][0] == places[number][0]:
            first_unread[number] = max(groups[number].start, groups[number - 1].stop)

    def read(number: int) -> pa.Table | None:
        unread = range(first_unread[number], groups[number].stop)
        return store.read_row_groups(places[number][0], unread, columns) if unread else None

    known, known_from = None, 0  # rows that were read, and the place of the first of them in its shard
    for number, table in enumerate(in_parallel(read, len(places))):
        if first_unread[number] == groups[number].start:
            known, known_from = table, groups[number].start * group_rows[number]
        elif known is not None and table is not None:
            known = pa.concat_tables([known.slice(rows[number].start - known_from), table])
            known_from = rows[number].start
        assert known is not None
        yield known.slice(rows[number].start - known_from, len(rows[number]))
