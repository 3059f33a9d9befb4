"""Transforms between physical and model values of an action, and the named ways to choose one.

Their users import them from `rt_models.spec`, whose contract they are part of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rt_models.action_space import ActionSpec


@dataclass(frozen=True, kw_only=True)
class ActionStatistics:
    """Per-dimension statistics of the physical actions of one store, each a tuple of A floats, over `count` steps."""

    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]

    def varies(self) -> np.ndarray:
        """bool (A,): True where the dimension takes more than one value."""
        return np.asarray(self.maximum) > np.asarray(self.minimum)


@dataclass(frozen=True, kw_only=True)
class AffineTransform:
    """model = physical * scale + offset, per dimension; invertible because no scale is 0."""

    name: str
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.scale) != len(self.offset):
            raise ValueError(f"transform {self.name}: {len(self.scale)} scales for {len(self.offset)} offsets")
        if not all(math.isfinite(s) and s != 0 for s in self.scale):
            raise ValueError(f"transform {self.name}: every scale must be finite and not 0, got {self.scale}")

    def apply(self, physical: np.ndarray) -> np.ndarray:
        """float (..., A) physical -> float32 (..., A) model values."""
        return (np.asarray(physical, np.float64) * self.scale + self.offset).astype(np.float32)

    def invert(self, model: np.ndarray) -> np.ndarray:
        """float (..., A) model -> float32 (..., A) physical values."""
        return ((np.asarray(model, np.float64) - self.offset) / self.scale).astype(np.float32)


def unscaled(size: int) -> AffineTransform:
    """The transform that changes nothing."""
    return AffineTransform(name="identity", scale=(1.0,) * size, offset=(0.0,) * size)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Model values are the physical values, as in the official RT-1."""

    def fit(self, spec: ActionSpec, statistics: ActionStatistics, dataset: str = "") -> AffineTransform:
        """Raises ValueError for a space whose bounds are a dataset's statistics."""
        if spec.bounded_by_statistics:
            raise ValueError(
                f"scaling Identity leaves actions of {dataset or spec.name} as they are, and only their statistics "
                f"bound those of {spec.name}: set scaling Quantiles (--scaling Quantiles)"
            )
        return unscaled(spec.size)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Maps each continuous dimension's [minimum, maximum] of the store onto [low, high] of the spec."""

    def fit(self, spec: ActionSpec, statistics: ActionStatistics, dataset: str = "") -> AffineTransform:
        return _onto_bounds("bounds", spec, statistics.minimum, statistics.maximum)


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Maps each continuous dimension's [1 %, 99 %] quantiles of the store onto [low, high] of the spec.

    Values beyond the quantiles are clipped by the tokenizer, not here: the transform keeps its inverse.
    """

    def fit(self, spec: ActionSpec, statistics: ActionStatistics, dataset: str = "") -> AffineTransform:
        # A rare command (a gripper closed in under 1 % of the steps) has equal quantiles: fall back on its bounds.
        low, high = np.array(statistics.q01), np.array(statistics.q99)
        flat = high - low < 1e-6
        low, high = np.where(flat, statistics.minimum, low), np.where(flat, statistics.maximum, high)
        return _onto_bounds("q01-q99", spec, low, high)


@dataclass(frozen=True, kw_only=True)
class RT1X:
    """The constants that RT-1-X was trained with, dataset by dataset (open_x_embodiment, minimal training example).

    Only these: what the official code clips besides (bridge at 1.74 and 1.39) stays unclipped, for the inverse's sake.
    """

    @staticmethod
    def knows(dataset: str) -> bool:
        """Whether there are constants for this dataset."""
        return dataset in _RT1X

    def fit(self, spec: ActionSpec, statistics: ActionStatistics, dataset: str = "") -> AffineTransform:
        """Raises ValueError for another action space, and for a dataset without constants that fit its store."""
        if not self.knows(dataset):
            raise ValueError(
                f"RT-1-X has no scaling that fits the actions of {dataset or 'an unnamed dataset'}: known are "
                f"{', '.join(_RT1X)}; leave it out or choose another scaling"
            )
        if not spec.space().is_rt1:  # whatever it is called
            raise ValueError(f"RT-1-X acts in rt1-11d, not in {spec.name}: choose another scaling")
        numbers = {"scale": [1.0] * spec.size, "offset": [0.0] * spec.size}
        for place, dimension in enumerate(spec.dimensions):
            field, _, axis = dimension.name.rpartition("_")
            group, row = (field, "xyz".index(axis)) if axis in ("x", "y", "z") else (dimension.name, 0)
            for name, column in zip(("scale", "offset"), _RT1X[dataset].get(group, ()), strict=False):
                numbers[name][place] = column[row]
        return AffineTransform(name="rt-1-x", scale=tuple(numbers["scale"]), offset=tuple(numbers["offset"]))


def _times(factor: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return (factor,) * 3, (0.0,) * 3


# Dataset -> group of the action -> (scale, offset) a dimension. From the source's own numbers, which the store's
# canonical values are, but for toto's gripper: RT-1-X was given 1 = open, 0 = closed, the store has -1 and +1.
# taco_play is missing because RT-1-X read its absolute poses, kuka and language_table because theirs were not released.
_JACO_MEAN, _JACO_STD = (0.00096585, -0.00580069, -0.00395066), (0.12234575, 0.09676983, 0.11155209)
_BRIDGE = {"world_vector": _times(1.75 / 0.05), "rotation_delta": _times(1.4 / 0.25)}
_RT1X: dict[str, dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "fractal20220817_data": {},
    "bridge": _BRIDGE,
    "bridge_dataset": _BRIDGE,  # the same robot and units, converted anew
    "jaco_play": {
        "world_vector": (
            tuple(1 / std for std in _JACO_STD),
            tuple(-mean / std for mean, std in zip(_JACO_MEAN, _JACO_STD, strict=True)),
        )
    },
    "berkeley_cable_routing": {},
    "roboturk": {},
    "nyu_door_opening_surprising_effectiveness": {"world_vector": _times(20), "rotation_delta": _times(15)},
    "viola": {"world_vector": _times(1.75), "rotation_delta": _times(3)},
    "berkeley_autolab_ur5": {"world_vector": _times(100), "rotation_delta": _times(15)},
    "toto": {"world_vector": _times(2), "gripper_closedness_action": ((-0.5,), (0.5,))},
}


_OF_A_CONSTANT = 1e6  # model values by unit of a dimension that never changes: [-1, 1] is 2e-6 of its unit wide

Scaling = Identity | Bounds | Quantiles | RT1X  # the named ways to choose a transform from a store's statistics


def _onto_bounds(name: str, spec: ActionSpec, low: Iterable[float], high: Iterable[float]) -> AffineTransform:
    scale, offset = [], []
    for dimension, source_low, source_high in zip(spec.dimensions, low, high, strict=True):
        width = float(source_high) - float(source_low)
        if width < 1e-9 and dimension.bounded_by == "statistics":  # every bin stands for the constant
            scale.append(_OF_A_CONSTANT)
            offset.append(-float(source_low) * _OF_A_CONSTANT)
        elif dimension.discrete or width < 1e-9:  # a class number, or a constant: nothing to spread over the bins
            scale.append(1.0)
            offset.append(0.0)
        else:
            scale.append((dimension.high - dimension.low) / width)
            offset.append(dimension.low - float(source_low) * scale[-1])
    return AffineTransform(name=name, scale=tuple(scale), offset=tuple(offset))
