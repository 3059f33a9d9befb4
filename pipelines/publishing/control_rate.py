"""How often a robot acts, against the rate that its policy learned at.

A displacement a step is a speed: at twice the rate it would be twice as fast. So another rate is an error, or, where
that is asked for, displacements are scaled by the two rates; places and velocities hold at any rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

from pipelines.publishing.inference import NamedAction
from rt_models.action_space import ActionSpec, is_motion
from rt_models.spec import DatasetContract

OtherRate: TypeAlias = Literal["refuse", "scale"]
_CLOSE = 0.02  # a robot's clock is no better


def rate_factor(dataset: DatasetContract, control_hz: float | None, other_rate: OtherRate) -> float:
    """By what displacements are multiplied for a robot that acts `control_hz` times a second; None: it did not say.

    Raises ValueError for a number that is no rate, and for another rate than was trained unless it is to be scaled.
    """
    if control_hz is None:
        return 1.0
    if not (math.isfinite(control_hz) and control_hz > 0):
        raise ValueError(f"control_hz must be a number of steps a second above 0, got {control_hz}")
    if math.isclose(control_hz, dataset.control_hz, rel_tol=_CLOSE):
        return 1.0
    if other_rate == "scale" and dataset.control_hz > 0:
        return dataset.control_hz / control_hz
    raise ValueError(
        f"the robot acts {control_hz:g} times a second, and the policy learned from {dataset.name} at "
        f"{dataset.control_hz:g} Hz, where an action lasts as long: run the robot at {dataset.control_hz:g} Hz, or "
        f"scale its displacements (other_rate scale)"
    )


def at_rate(action: NamedAction, factor: float, space: ActionSpec, side: DatasetContract) -> NamedAction:
    """The action with its displacements scaled; places, velocities, efforts, classes and what is absent hold."""
    if factor == 1.0:
        return action
    scaled = _displacements(space, side) - set(action.absent)
    values: Mapping[str, float | None] = {
        name: value * factor if value is not None and name in scaled else value for name, value in action.values.items()
    }
    return replace(action, values=values)


def _displacements(space: ActionSpec, side: DatasetContract) -> set[str]:
    """The dimensions that move something by so much a step."""
    if side.meanings:
        return {name for name, meaning in zip(space.names, side.meanings, strict=True) if meaning.kind == "delta"}
    gripper = ("gripper",) if side.gripper == "relative" else ()
    return {name for name in space.names if is_motion(name) or name.startswith(gripper)}
