"""`meta/stats.json` of a LeRobot dataset: per value over all frames, per colour over some pixels of some frames.

min, max, mean and std (population) are exact; quantiles within 0.025 % (`preprocessing.store.statistics`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from preprocessing.store.images import decode_image
from preprocessing.store.statistics import Moments

_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_BATCH_ROWS = 8192
_LOOKED_AT = 3  # frames of an episode that the colours are measured on
_LONGEST_SIDE = 150  # of a measured frame: of larger ones only every n-th row and column counts


class ColumnStatistics:
    """Statistics of a feature of numbers, flattened to A values a step."""

    def __init__(self) -> None:
        self._moments: Moments | None = None
        self._recent: list[np.ndarray] = []

    def add(self, values_NA: np.ndarray) -> None:
        self._recent.append(values_NA.astype(np.float64))
        if sum(map(len, self._recent)) >= _BATCH_ROWS:
            self._merge()

    def to_json(self) -> dict[str, list[float]]:
        """Lists of A numbers by statistic, and `count`."""
        self._merge()
        return {} if self._moments is None else _statistics(self._moments)

    def _merge(self) -> None:
        if self._recent:
            newest = Moments.of(np.concatenate(self._recent))
            self._moments = newest if self._moments is None else self._moments.merged(newest)
            self._recent = []


class PictureStatistics:
    """Colours of a camera in 0..1, from the first, middle and last frame of every episode."""

    def __init__(self) -> None:
        self._pixels = ColumnStatistics()
        self._frames = 0
        self.size = (0, 0)

    def watched(self, encoded: Sequence[bytes]) -> Iterator[np.ndarray]:
        """The decoded pictures uint8 (H, W, 3), looked at on their way. Raises ValueError if they differ in size."""
        chosen = set(np.linspace(0, len(encoded) - 1, min(_LOOKED_AT, len(encoded))).astype(int).tolist())
        for step, data in enumerate(encoded):
            frame_HWC = decode_image(data)
            size = (frame_HWC.shape[0], frame_HWC.shape[1])
            if self.size not in ((0, 0), size):
                raise ValueError(f"frames differ in size, {size} after {self.size}: preprocess with --image-size")
            self.size = size
            if step in chosen:
                stride = -(-max(size) // _LONGEST_SIDE)
                self._pixels.add(frame_HWC[::stride, ::stride].reshape(-1, 3) / 255)
                self._frames += 1
            yield frame_HWC

    def to_json(self) -> dict[str, list[object]]:
        """Statistics of shape (3, 1, 1), and the count of frames."""
        statistics = self._pixels.to_json()
        return {
            name: [self._frames] if name == "count" else [[[value]] for value in values]
            for name, values in statistics.items()
        }


def _statistics(moments: Moments) -> dict[str, list[float]]:
    rows: dict[str, np.ndarray] = {
        "min": moments.minimum_A,
        "max": moments.maximum_A,
        "mean": moments.mean_A,
        "std": np.sqrt(moments.squares_A / moments.count),
        **{name: moments.quantiles(fraction) for name, fraction in _QUANTILES.items()},
    }
    statistics: dict[str, list[float]] = {name: row.tolist() for name, row in rows.items()}
    return {**statistics, "count": [moments.count]}
