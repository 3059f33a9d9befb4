"""95 % intervals of a mean from resampled groups: steps of an episode, or questions about an image, go together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Interval = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """`samples` resamples of the groups, drawn with `seed`."""

    samples: int = 2000
    seed: int = 0

    def over(self, group_N: np.ndarray) -> Callable[[np.ndarray], Interval]:
        """A function from values (N,) to their {mean, low, high}; `group_N` names the group of each value."""
        _, member_N = np.unique(group_N, return_inverse=True)
        counts_G = np.bincount(member_N)
        draws = np.random.default_rng(self.seed).integers(len(counts_G), size=(self.samples, len(counts_G)))
        weights_SG = np.stack([np.bincount(draw, minlength=len(counts_G)) for draw in draws])

        def interval(value_N: np.ndarray) -> Interval:
            sums_G = np.bincount(member_N, weights=value_N)
            means_S = (weights_SG @ sums_G) / (weights_SG @ counts_G)
            low, high = np.quantile(means_S, [0.025, 0.975])
            return {"mean": float(value_N.mean()), "low": float(low), "high": float(high)}

        return interval
