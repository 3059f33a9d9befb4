"""Errors of predicted actions in physical units, each dimension over its range, so that they add up and compare.

Range and dimensions come from the evaluated store alone, so they are the same for every model that is scored on it,
whatever its bins, its scaling and its training data.

Axes: N scored steps, A action dimensions, D of them compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rt_models.spec import Contract


@dataclass(frozen=True, kw_only=True, eq=False)
class ErrorScale:
    """`dims` int64 (D,): the dimensions that the store has and that vary in it; `ranges_D`: highest less lowest value
    of its steps, in the dimension's unit. Of a class number the error is 1 where it is another class, whatever its
    number."""

    dims: np.ndarray
    ranges_D: np.ndarray
    is_class_D: np.ndarray

    @staticmethod
    def of(store: Contract) -> ErrorScale:
        """From a store's own contract. Raises ValueError if no dimension varies."""
        dataset = store.datasets[0]
        dims = np.flatnonzero(dataset.statistics.varies() & np.array(dataset.action_mask))
        if not len(dims):
            raise ValueError(
                f"no action dimension of {dataset.name} varies in these episodes: there is nothing to score"
            )
        ranges_A = np.subtract(dataset.statistics.maximum, dataset.statistics.minimum)
        return ErrorScale(dims=dims, ranges_D=ranges_A[dims], is_class_D=store.action.discrete()[dims])

    def errors(self, predicted_NA: np.ndarray, recorded_NA: np.ndarray) -> np.ndarray:
        """float64 (N,): mean over the compared dimensions of |predicted - recorded| / range, of physical values.

        A dimension that is not answered and has no neutral value (NaN) is wrong by its whole range.
        """
        difference_ND = np.abs(predicted_NA.astype(np.float64) - recorded_NA)[:, self.dims]
        difference_ND = np.where(np.isnan(difference_ND), self.ranges_D, difference_ND)
        return np.where(self.is_class_D, difference_ND > 0.5, difference_ND / self.ranges_D).mean(axis=1)
