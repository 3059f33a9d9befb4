"""Statistics of actions and states over the episodes of a shard, the same to the last bit wherever they are gathered:
by a conversion, or from the finished file.

Steps that are terminal do not count: their actions are padding in many sets. Nor do states that are not finite.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from preprocessing.store.statistics import Moments

_ROWS = 8192  # gathered before they are merged


class ShardMoments:
    """Takes the rows of one episode after the other; a store without states has a `state_size` of 0."""

    def __init__(self, action_size: int, state_size: int) -> None:
        self._sizes = {"action": action_size} | ({"proprio": state_size} if state_size else {})
        self._moments = {name: Moments.empty(size) for name, size in self._sizes.items()}
        self._recent: dict[str, list[np.ndarray]] = {name: [] for name in self._sizes}

    @property
    def columns(self) -> tuple[str, ...]:
        """What an episode's table has to have."""
        return (*self._sizes, "is_terminal")

    def add(self, episode: pa.Table) -> None:
        """The rows of an episode."""
        counted_N = ~episode["is_terminal"].to_numpy()
        for name, size in self._sizes.items():
            values_NX = episode[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
            finite_N = np.isfinite(values_NX).all(axis=1) if name == "proprio" else np.ones(len(values_NX), bool)
            self._recent[name].append(values_NX[counted_N & finite_N])
        if sum(map(len, self._recent["action"])) >= _ROWS:
            self._merge()

    def finish(self) -> tuple[Moments, Moments | None]:
        """Of the actions and of the states that were taken."""
        self._merge()
        return self._moments["action"], self._moments.get("proprio")

    def _merge(self) -> None:
        for name, rows in self._recent.items():
            if rows:
                self._moments[name] = self._moments[name].merged(Moments.of(np.concatenate(rows)))
                rows.clear()
