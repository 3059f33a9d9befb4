"""95 % intervals of a mean from resampled groups: steps of an episode, or questions about an image, go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


_BLOCK = 2**21  # weights at once: draws, counts and their floats take 24 bytes each, 50 MB


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """`samples` resamples of the groups, drawn with `seed`."""

    samples: int = 2000
    seed: int = 0

    def over(self, group_N: np.ndarray) -> Callable[[np.ndarray], Interval]:
        """A function from values (N,) to their interval; `group_N` names the group of each value."""
        _, member_N = np.unique(group_N, return_inverse=True)
        counts_G = np.bincount(member_N).astype(np.float64)

        def interval(value_N: np.ndarray) -> Interval:
            sums_G = np.bincount(member_N, weights=value_N)
            means = [(weights_BG @ sums_G) / (weights_BG @ counts_G) for weights_BG in self._weights(len(counts_G))]
            low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
            return Interval(mean=float(value_N.mean()), low=float(low), high=float(high))

        return interval

    def _weights(self, groups: int) -> Iterator[np.ndarray]:
        """float64 (B, G), block by block: how often each of the groups is in each resample.

        They are drawn anew for every interval instead of kept: for 100,000 groups they are 1.6 GB.
        """
        random, rows = np.random.default_rng(self.seed), max(_BLOCK // groups, 1)
        for first in range(0, self.samples, rows):
            draws_BG = random.integers(groups, size=(min(rows, self.samples - first), groups))
            yield np.stack([np.bincount(draw, minlength=groups) for draw in draws_BG]).astype(np.float64)
