"""Errors of a mapped dataset in its robot's own space: what the robot would have been sent, beside what was recorded.

A model of a mixture is scored in the common space. Its actions go back to the robot through the declared map, and a
metre or a radian of the robot's own says more to its owner.

Axes: N scored steps, A dimensions of the common space, O of the robot's own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipelines.evaluation.report import OwnSpaceErrors
from rt_models.spec import ActionSpec, DatasetContract


def own_space_errors(
    dataset: DatasetContract, common: ActionSpec, recorded_NA: np.ndarray, answered: Mapping[str, np.ndarray]
) -> OwnSpaceErrors | None:
    """Of policies that `answered` (N, A) physical common values; None for a dataset that needs no map.

    Compared are the dimensions that the map reaches and that the dataset has. Of a class the error is the share that is
    wrong.
    """
    own = dataset.own
    if own is None:
        return None
    reached_O = own.arrays(common).mask_back(np.asarray(dataset.action_mask), own.action.size)
    is_class_O, recorded_NO = own.action.discrete(), own.returned(recorded_NA, common)
    returned = {name: own.returned(values_NA, common) for name, values_NA in answered.items()}

    def error(place: int, values_NO: np.ndarray) -> float:
        difference_N = np.abs(values_NO[:, place].astype(np.float64) - recorded_NO[:, place])
        return float(np.mean(difference_N > 0.5 if is_class_O[place] else difference_N))

    places: list[int] = np.flatnonzero(reached_O & np.array(own.dataset.action_mask)).tolist()
    return OwnSpaceErrors(
        space=own.action.name,
        units={own.action.names[place]: own.dataset.units[place] for place in places},
        mean_absolute_error={
            own.action.names[place]: {name: error(place, values_NO) for name, values_NO in returned.items()}
            for place in places
        },
    )
