"""Statistics of closed-loop returns: two policies on the same seeds, where a simulator has rewards and no success.

The p-value is that of the paired permutation test (Fisher 1935): between equal policies each pair's difference is as
likely to have the other sign.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.evaluation.statistics import Bootstrap, Interval
from pipelines.evaluation.success_rates import Z_80, Z_95, mean_over_tasks, paired_differences

_FLIPS = 10_000  # draws of all signs; up to 13 pairs all 2^n signs are counted instead
_COUNTED = 13


@dataclass(frozen=True, kw_only=True)
class PairedReturns:
    """Two policies on the same tasks and seeds. `difference` is the first one's mean return minus the second's."""

    episodes: int
    difference: Interval
    p_value: float
    """Two-sided, of the paired permutation test."""
    more_episodes: int | None
    """Episodes still missing to tell a difference of this size with 80 % power; 0 if there are enough, None if the
    returns are equal and no number would tell."""

    @property
    def is_decided(self) -> bool:
        return self.p_value < 0.05


def compare_returns(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], bootstrap: Bootstrap
) -> PairedReturns:
    """Compare returns by task; the n-th episode of a task had the same seed under both policies.

    Raises ValueError if the two did not run the same episodes.
    """
    differences = paired_differences(first, second)
    all_N = np.array([value for values in differences.values() for value in values])
    needed = _episodes_to_decide(all_N)
    return PairedReturns(
        episodes=len(all_N),
        difference=mean_over_tasks(differences, bootstrap),
        p_value=sign_flip(all_N, bootstrap.seed),
        more_episodes=None if needed is None else max(needed - len(all_N), 0),
    )


def sign_flip(difference_N: np.ndarray, seed: int = 0) -> float:
    """The two-sided p-value of a mean of 0: exact for few pairs, else over random signs with the observed ones."""
    count = len(difference_N)
    if count <= _COUNTED:
        sign_SN = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        drawn_SN = np.random.default_rng(seed).choice([-1, 1], (_FLIPS - 1, count))
        sign_SN = np.concatenate([np.ones((1, count)), drawn_SN])
    sum_S = np.abs(sign_SN @ difference_N)
    observed = abs(difference_N.sum())
    return float((sum_S >= observed - 1e-9 * max(observed, 1.0)).mean())


def _episodes_to_decide(difference_N: np.ndarray) -> int | None:
    """Pairs for 80 % power at a two-sided level of 5 %, by the normal approximation; None if the means are equal."""
    mean = float(difference_N.mean())
    if mean == 0 or len(difference_N) < 2:
        return None
    return math.ceil(((Z_95 + Z_80) * float(difference_N.std(ddof=1)) / mean) ** 2)
