"""A store whose state stands still: at every step of an episode it is that of the first one.

What a policy loses by it is how far it leans on its state, as one that copies where it was does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import pyarrow as pa

from preprocessing.loading.relabelling import matrix, with_column
from preprocessing.store.episode_store import EpisodeStore, fixed_lists


@dataclass(frozen=True, kw_only=True, eq=False)
class FrozenStateStore(EpisodeStore):
    """A store whose column `proprio` stands still; everything else is as in `inner`."""

    inner: EpisodeStore

    @staticmethod
    def of(store: EpisodeStore) -> FrozenStateStore:
        return FrozenStateStore(
            **{field.name: getattr(store, field.name) for field in fields(EpisodeStore)}, inner=store
        )

    def _read(self, shard: int, row_groups: range, columns: Sequence[str]) -> pa.Table:
        table = self.inner._read(shard, row_groups, columns)
        if "proprio" not in columns:
            return table
        first = row_groups.start * self.shards[shard].row_group_rows
        frozen_NP = self._first_states(shard)[first : first + table.num_rows]
        return with_column(table, "proprio", fixed_lists(frozen_NP))

    @cached_property
    def _known(self) -> dict[int, np.ndarray]:
        return {}

    def _first_states(self, shard: int) -> np.ndarray:
        """float32 (N, P) over a whole shard."""
        if shard not in self._known:
            lengths = self.shards[shard].episode_lengths
            state_NP = matrix(self.inner.read_shard(shard, ["proprio"]), "proprio")
            self._known[shard] = np.repeat(state_NP[np.cumsum(lengths) - lengths], lengths, axis=0)
        return self._known[shard]
