"""Which store each sample of a mixture comes from: pure arithmetic on the weights, with no randomness and no I/O.

The stores' turns are a quota sequence (Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980):
after every prefix each store has had its share of the samples to within 1 - 1/(2K - 2) of one, for K stores. It has a
period, the sum of the weights as whole numbers, so the store of sample 10^9 is a table look-up.

Sample i goes to lane (i + i div M) mod L, M being the least common multiple of period and lanes. The slow rotation
gives every lane, hence every rank, exactly its part of every store, also where period and lanes have a common factor:
two stores in equal parts would else leave the even lanes with one store only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

RESOLUTION = 2**16
"""The largest period: weights that need a larger one get the nearest shares that one up to it has."""
_VARIED = (
    64  # a pattern is repeated, forwards and backwards, up to this period, so that short ones do not beat with lanes
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Assignments:
    """Of each sample, int64 (N,): its store, its lane, and how many samples before it, from the start of the run, came
    from that store and from that store in that lane."""

    stores: np.ndarray
    lanes: np.ndarray
    in_store: np.ndarray
    in_lane: np.ndarray


class MixtureOrder:
    """The stores' turns, for `weights` (one per store, above 0, of any scale) over `lanes` lanes."""

    def __init__(self, weights: Sequence[float], lanes: int) -> None:
        self.shares = whole_weights(weights)
        self.lanes = lanes
        self._pattern = np.array(_pattern(self.shares), np.int64)
        self._rotates_after = math.lcm(len(self._pattern), lanes)
        self._position, self._counts = 0, np.zeros((len(weights), lanes), np.int64)

    def take(self, first: int, count: int) -> Assignments:
        """The turns of the samples [first, first + count)."""
        counts = self._counts_before(first)
        stores, lanes = self._named(np.arange(first, first + count, dtype=np.int64))
        cells = stores * self.lanes + lanes
        self._position = first + count
        self._counts = counts + np.bincount(cells, minlength=counts.size).reshape(counts.shape)
        return Assignments(
            stores=stores,
            lanes=lanes,
            in_store=counts.sum(axis=1)[stores] + _occurrence(stores),
            in_lane=counts.ravel()[cells] + _occurrence(cells),
        )

    def _named(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._pattern[ids % len(self._pattern)], (ids + ids // self._rotates_after) % self.lanes

    def _counts_before(self, first: int) -> np.ndarray:
        """int64 (K, L): turns that each store has had in each lane before sample `first`."""
        if first == self._position:
            return self._counts
        whole, rest = divmod(first, len(self._pattern) * self.lanes)  # after so many samples all lanes are even
        per_period = np.bincount(self._pattern, minlength=len(self.shares))
        sources, lanes = self._named(np.arange(first - rest, first, dtype=np.int64))
        cells = np.bincount(sources * self.lanes + lanes, minlength=len(self.shares) * self.lanes)
        return whole * per_period[:, None] + cells.reshape(len(self.shares), self.lanes)


def _occurrence(values: np.ndarray) -> np.ndarray:
    """int64: how often each value came before, in this array."""
    order = np.argsort(values, kind="stable")
    changes = np.flatnonzero(np.diff(values[order], prepend=-1))
    counts = np.empty(len(values), np.int64)
    counts[order] = np.arange(len(values)) - np.repeat(changes, np.diff(changes, append=len(values)))
    return counts


def whole_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """The smallest whole numbers in the proportions of `weights`; the nearest where these add up to too much.

    Raises ValueError for a weight that is not above 0 and finite.
    """
    wrong = [weight for weight in weights if not 0 < weight < float("inf")]
    if wrong or not len(weights):
        raise ValueError(f"weights of stores must be above 0 and finite, got {wrong[0] if wrong else 'none'}")
    exact = [Fraction(str(weight)) for weight in weights]
    if max(exact) / min(exact) < RESOLUTION:
        scale = math.lcm(*(weight.denominator for weight in exact))
        whole = [int(weight * scale) for weight in exact]
        if sum(whole) // math.gcd(*whole) <= RESOLUTION:
            return tuple(number // math.gcd(*whole) for number in whole)
    return _nearest(exact)


def _nearest(weights: Sequence[Fraction]) -> tuple[int, ...]:
    """Whole numbers in nearly these proportions: of all periods up to RESOLUTION the one that fits all stores best.

    For K stores its shares are off by about RESOLUTION^(-K/(K-1)): 10^-10 of two, 10^-6 of six.
    """
    share_K = np.array([float(weight / sum(weights)) for weight in weights])
    period_P = np.arange(1, RESOLUTION + 1)
    whole_PK = np.rint(period_P[:, None] * share_K).astype(np.int64)
    error_P = np.abs(whole_PK / period_P[:, None] - share_K).max(axis=1)
    fits_P = (whole_PK.sum(axis=1) == period_P) & (whole_PK.min(axis=1) > 0)
    if not fits_P.any():  # a store with less than one sample in the longest period gets that one
        return _rounded(share_K)
    return tuple(whole_PK[np.where(fits_P, error_P, np.inf).argmin()].tolist())


def _rounded(share_K: np.ndarray) -> tuple[int, ...]:
    """Whole numbers that add up to RESOLUTION, by largest remainder, none below 1."""
    ideal_K = share_K * (RESOLUTION - len(share_K))
    whole_K = ideal_K.astype(np.int64) + 1
    whole_K[np.argsort(whole_K - ideal_K, kind="stable")[: RESOLUTION - whole_K.sum()]] += 1
    return tuple(whole_K.tolist())


@lru_cache(maxsize=8)
def _pattern(shares: tuple[int, ...]) -> tuple[int, ...]:
    """The stores of one period. A short quota sequence is repeated, reversed where the Thue-Morse sequence has a one:

    backwards it keeps its quotas as well, since they hold exactly at both ends.
    """
    forwards = _quota_sequence(shares)
    copies = max(1, _VARIED // len(forwards))
    return tuple(store for copy in range(copies) for store in forwards[:: -1 if copy.bit_count() % 2 else 1])


def _quota_sequence(shares: tuple[int, ...]) -> list[int]:
    """Tijdeman's algorithm: of the stores that are due at all, the one that would soonest fall too far behind."""
    if len(shares) == 1:
        return [0] * shares[0]
    share_K, period, slack = np.array(shares, np.int64), sum(shares), 2 * len(shares) - 2
    behind_K, sequence = np.zeros(len(shares), np.int64), []
    for _ in range(period):
        behind_K += share_K  # by how much each store is behind its share, in units of 1 / period samples
        time_left_K = ((slack - 1) * period - slack * behind_K) / share_K
        chosen = int(np.argmin(np.where(slack * behind_K >= period, time_left_K, np.inf)))
        behind_K[chosen] -= period
        sequence.append(chosen)
    return sequence
