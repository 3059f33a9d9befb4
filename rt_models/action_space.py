"""Action spaces: ordered dimensions with names, bounds, units and classes, and how each is binned into a token.

NumPy and the standard library only, so that a data job can import it without torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

TERMINATE, ARM, BASE = 0, 1, 2  # classes of `terminate_episode`, in the order of the released one-hot
_CLASS_NAMES = {"terminate_episode": ("terminate", "arm", "base")}
_MOTIONS = ("world_vector", "position_delta", "rotation_delta", "base_displacement")  # 0 is no motion

GripperConvention = Literal["+1 closes, -1 opens", "1 is open, 0 is closed", "none"]


@dataclass(frozen=True, kw_only=True)
class ActionDimension:
    """One scalar of an action.

    `low` and `high` bound the *model* value that is binned; `unit` is the unit of the *physical* value.
    A discrete dimension holds a class number 0 .. `num_classes` - 1 and is never scaled.
    """

    name: str
    low: float
    high: float
    unit: str
    num_classes: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"action dimension {self.name}: needs finite low < high, got [{self.low}, {self.high}]")

    @property
    def discrete(self) -> bool:
        return self.num_classes > 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class of each number, of a dimension whose classes have names; else empty."""
        return _CLASS_NAMES.get(self.name, ())

    def neutral(self, mean: float) -> float:
        """The physical value that commands nothing, for a dataset without this dimension, whose mean there is `mean`.

        A displacement is 0 and an episode never ends. A gripper that was never commanded stays at the mean. NaN where
        no value is neutral, as of an absolute joint.
        """
        if self.class_names:
            return float(ARM)
        if self.name.startswith("gripper"):
            return mean
        return 0.0 if self.name.startswith(_MOTIONS) else math.nan


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """An ordered action space and how it is binned.

    `binning`: "truncate" is the official rule, int((a - low) / (high - low) * (bins - 1)), whose decoded values are on
    average half a bin too low; "centre" decodes each of `bins` equal cells at its middle.
    """

    name: str
    dimensions: tuple[ActionDimension, ...]
    gripper: GripperConvention
    bins: int = 256
    binning: Literal["truncate", "centre"] = "truncate"

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"action space {self.name}: dimension names repeat in {self.names}")
        needed = max([2, *(dimension.num_classes for dimension in self.dimensions)])
        if self.bins < needed:
            raise ValueError(f"action space {self.name}: bins = {self.bins}, at least {needed} are needed")

    @property
    def size(self) -> int:
        return len(self.dimensions)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dimension.name for dimension in self.dimensions)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high), float32 (A,), of the model values."""
        low = np.array([dimension.low for dimension in self.dimensions], np.float32)
        high = np.array([dimension.high for dimension in self.dimensions], np.float32)
        return low, high

    def discrete(self) -> np.ndarray:
        """bool (A,): True where the dimension is a class number."""
        return np.array([dimension.discrete for dimension in self.dimensions])

    def with_units(self, units: Mapping[str, str]) -> ActionSpec:
        """The same space with other physical units, e.g. {"world_vector_x": "unitless"}."""
        dimensions = tuple(replace(d, unit=units.get(d.name, d.unit)) for d in self.dimensions)
        return replace(self, dimensions=dimensions)

    def same_space(self, other: ActionSpec) -> bool:
        """Whether values of one can be read as values of the other: names, classes and gripper sign (not the bins)."""

        mine, theirs = ([(d.name, d.num_classes) for d in spec.dimensions] for spec in (self, other))
        return mine == theirs and self.gripper == other.gripper


def rt1_action_spec(
    *, bins: int = 256, world_vector_limit: float = 1.0, binning: Literal["truncate", "centre"] = "truncate"
) -> ActionSpec:
    """RT-1's 11-D space in the order of the released models, one token a dimension.

    google-deepmind/open_x_embodiment 9eeb68b9 `models/rt1.py:286-307`.

    `world_vector_limit` is 1 for RT-1 and 2 for RT-1-X.
    """
    limit = world_vector_limit
    half_pi = math.pi / 2
    dimensions = [ActionDimension(name="terminate_episode", low=0, high=2, unit="class", num_classes=3)]
    dimensions += [ActionDimension(name=f"world_vector_{a}", low=-limit, high=limit, unit="m") for a in "xyz"]
    dimensions += [ActionDimension(name=f"rotation_delta_{a}", low=-half_pi, high=half_pi, unit="rad") for a in "xyz"]
    dimensions += [
        ActionDimension(name="gripper_closedness_action", low=-1, high=1, unit="closedness"),
        ActionDimension(name="base_displacement_vertical_rotation", low=-math.pi, high=math.pi, unit="rad"),
    ]
    dimensions += [ActionDimension(name=f"base_displacement_vector_{a}", low=-1, high=1, unit="m") for a in "xy"]
    return ActionSpec(
        name="rt1-11d", dimensions=tuple(dimensions), gripper="+1 closes, -1 opens", bins=bins, binning=binning
    )


def seven_d_action_spec(*, bins: int = 256) -> ActionSpec:
    """Octo's and OpenVLA's 7-D space: position delta, rotation delta, absolute gripper with 1 = open."""
    dimensions = [ActionDimension(name=f"position_delta_{a}", low=-1, high=1, unit="m") for a in "xyz"]
    pi = math.pi
    dimensions += [ActionDimension(name=f"rotation_delta_{a}", low=-pi / 2, high=pi / 2, unit="rad") for a in "xyz"]
    dimensions += [ActionDimension(name="gripper_open", low=0, high=1, unit="openness")]
    return ActionSpec(name="end-effector-7d", dimensions=tuple(dimensions), gripper="1 is open, 0 is closed", bins=bins)
