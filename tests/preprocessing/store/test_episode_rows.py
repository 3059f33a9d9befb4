"""Episodes that are read one after the other: the right rows of each, and no row group twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.store.episode_rows import read_episodes
from preprocessing.store.episode_store import EpisodeStore

SHARDS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=8), min_size=1, max_size=3)


class Rows:
    """Shards whose rows are numbers, and what was read of them."""

    def __init__(self, lengths: list[list[int]], row_group_rows: int) -> None:
        self.shards = [
            SimpleNamespace(episode_lengths=np.array(of_shard, np.int32), row_group_rows=row_group_rows)
            for of_shard in lengths
        ]
        self.read: list[tuple[int, int]] = []

    def rows_of(self, shard: int, episode: int) -> range:
        own: Any = self
        return EpisodeStore.rows_of(own, shard, episode)

    def read_row_groups(self, shard: int, row_groups: range, columns: list[str]) -> pa.Table:
        assert columns == ["row"]
        self.read += [(shard, group) for group in row_groups]
        size, rows = self.shards[shard].row_group_rows, int(self.shards[shard].episode_lengths.sum())
        return pa.table({"row": np.arange(row_groups.start * size, min(row_groups.stop * size, rows))})


@settings(deadline=None, max_examples=60)
@given(SHARDS, st.integers(1, 12), st.data())
def test_the_rows_of_each_episode_with_no_row_group_read_twice(
    lengths: list[list[int]], row_group_rows: int, data: st.DataObject
) -> None:
    store: Any = Rows(lengths, row_group_rows)
    there = [(shard, episode) for shard, of_shard in enumerate(lengths) for episode in range(len(of_shard))]
    places = sorted(data.draw(st.sets(st.sampled_from(there), min_size=1)))
    found = [table["row"].to_pylist() for table in read_episodes(store, places, ["row"])]
    assert found == [list(store.rows_of(*place)) for place in places]
    needed = {(shard, row // row_group_rows) for (shard, _), rows in zip(places, found, strict=True) for row in rows}
    assert sorted(store.read) == sorted(needed)
