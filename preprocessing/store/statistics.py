"""Per-dimension statistics in one pass over batches of rows, mergeable across shards, without keeping the rows.

Count, mean and squared deviations merge by Chan et al. (1979), in float64. Quantiles come from a histogram of the
values as float32 rounded to 12 significant bits: adding two histograms merges them exactly, whatever the order, and an
order statistic read from one is within 2^-12 (0.025 %) of the true one, exactly equal for short numbers such as 0 and
+-1. Between order statistics it interpolates linearly, as NumPy does.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preprocessing.store.json_files import JsonObject
from rt_models.spec import ActionStatistics

_DROPPED_BITS = 12  # of a float32's 23 mantissa bits; 11 stored ones and the leading one stay
_LARGEST = 0x7F7FFFFF  # bits of the largest finite float32


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Statistics of A dimensions over `count` rows; `histograms` are (sorted keys, counts) a dimension."""

    count: int
    mean_A: np.ndarray
    squares_A: np.ndarray
    minimum_A: np.ndarray
    maximum_A: np.ndarray
    histograms: tuple[tuple[np.ndarray, np.ndarray], ...]

    @staticmethod
    def of(values_NA: np.ndarray) -> Moments:
        """Statistics of float (N, A) rows, N >= 0."""
        values = np.asarray(values_NA, np.float64)
        if len(values) == 0:
            return Moments.empty(values.shape[1])
        mean = values.mean(axis=0)
        keys = _keys(values)
        return Moments(
            count=len(values),
            mean_A=mean,
            squares_A=((values - mean) ** 2).sum(axis=0),
            minimum_A=values.min(axis=0),
            maximum_A=values.max(axis=0),
            histograms=tuple(np.unique(column, return_counts=True) for column in keys.T),
        )

    @staticmethod
    def empty(size: int) -> Moments:
        none = np.empty(0, np.int64)
        return Moments(
            count=0,
            mean_A=np.zeros(size),
            squares_A=np.zeros(size),
            minimum_A=np.full(size, np.inf),
            maximum_A=np.full(size, -np.inf),
            histograms=((none, none),) * size,
        )

    def merged(self, other: Moments) -> Moments:
        """Statistics over both sets of rows."""
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        count = self.count + other.count
        difference = other.mean_A - self.mean_A
        return Moments(
            count=count,
            mean_A=self.mean_A + difference * (other.count / count),
            squares_A=self.squares_A + other.squares_A + difference**2 * (self.count * other.count / count),
            minimum_A=np.minimum(self.minimum_A, other.minimum_A),
            maximum_A=np.maximum(self.maximum_A, other.maximum_A),
            histograms=tuple(_added(a, b) for a, b in zip(self.histograms, other.histograms, strict=True)),
        )

    def quantiles(self, fraction: float) -> np.ndarray:
        """float64 (A,): the `fraction` quantile of each dimension."""
        rank = fraction * (self.count - 1)
        quantiles = []
        for (keys, counts), low, high in zip(self.histograms, self.minimum_A, self.maximum_A, strict=True):
            ends = np.cumsum(counts)
            below, above = (_value(keys[np.searchsorted(ends, r, side="right")]) for r in (int(rank), -int(-rank // 1)))
            quantiles.append(np.clip(below + (above - below) * (rank - int(rank)), low, high))
        return np.array(quantiles)

    def statistics(self) -> ActionStatistics:
        """The statistics as the contract holds them; std is that of the population. Zeros if no row was counted."""
        if self.count == 0:
            zeros = (0.0,) * len(self.mean_A)
            return ActionStatistics(count=0, mean=zeros, std=zeros, minimum=zeros, maximum=zeros, q01=zeros, q99=zeros)
        rows = {
            "mean": self.mean_A,
            "std": np.sqrt(self.squares_A / self.count),
            "minimum": self.minimum_A,
            "maximum": self.maximum_A,
            "q01": self.quantiles(0.01),
            "q99": self.quantiles(0.99),
        }
        return ActionStatistics(count=self.count, **{name: tuple(row.tolist()) for name, row in rows.items()})

    def to_json(self) -> JsonObject:
        arrays = ("mean_A", "squares_A", "minimum_A", "maximum_A")
        return {
            "count": self.count,
            **({name: getattr(self, name).tolist() for name in arrays} if self.count else {}),
            "histograms": [[_to_text(keys), _to_text(counts)] for keys, counts in self.histograms],
        }

    @staticmethod
    def from_json(data: JsonObject) -> Moments:
        if data["count"] == 0:
            return Moments.empty(len(data["histograms"]))
        arrays = {name: np.array(value) for name, value in data.items() if name.endswith("_A")}
        histograms = tuple((_from_text(keys), _from_text(counts)) for keys, counts in data["histograms"])
        return Moments(count=data["count"], histograms=histograms, **arrays)


def tiny_ranges(statistics: ActionStatistics, names: Sequence[str], mask: Sequence[bool]) -> dict[str, str]:
    """Dimensions that exist (`mask`) but hardly vary.

    name -> "constant", or "tiny range" where under 1e-4 lies between the 1 % and the 99 % quantile.
    """
    verdicts = {}
    for place, name in enumerate(names):
        if not mask[place]:
            continue
        if statistics.maximum[place] == statistics.minimum[place]:
            verdicts[name] = "constant"
        elif statistics.q99[place] - statistics.q01[place] < 1e-4:
            verdicts[name] = "tiny range"
    return verdicts


def _to_text(numbers: np.ndarray) -> str:
    """int64 numbers as base64 of their bytes: a shard has tens of thousands, slow to write and to read as text."""
    return base64.b64encode(numbers.astype("<i8").tobytes()).decode()


def _from_text(text: str | list[int]) -> np.ndarray:
    """Also from the list of numbers of an older version. Raises TypeError for what is neither."""
    if isinstance(text, list):
        return np.array(text, np.int64)
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<i8").astype(np.int64)
    except ValueError:
        raise TypeError(f"a histogram of {len(text)} letters that are no base64 of whole numbers") from None


def _keys(values: np.ndarray) -> np.ndarray:
    """int64 keys in the order of the float values they stand for."""
    bits = np.ascontiguousarray(values, np.float32).view(np.int32).astype(np.int64)
    magnitude = ((bits & 0x7FFFFFFF) + (1 << (_DROPPED_BITS - 1))) >> _DROPPED_BITS
    return np.where(bits < 0, -magnitude, magnitude)


def _value(key: np.int64) -> float:
    bits = np.array(min(abs(int(key)) << _DROPPED_BITS, _LARGEST), np.int32)  # rounding up may have left the numbers
    return float(np.sign(key) * bits.view(np.float32))


def _added(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    keys, counts = (np.concatenate(pair) for pair in zip(a, b, strict=True))
    order = np.argsort(keys, kind="stable")  # of two sorted runs, which it merges
    keys, counts = keys[order], counts[order]
    starts = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1))
    return keys[starts], np.add.reduceat(counts, starts)
