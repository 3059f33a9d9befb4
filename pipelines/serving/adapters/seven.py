"""What the adapters of a hand's seven numbers share: displacement (3), rotation (3), gripper (1)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pipelines.serving.adapters import end_effector
from pipelines.serving.adapters.base import Adapter, Units, Values, changed
from pipelines.serving.adapters.end_effector import Motion, axis_angle_to_euler, euler_to_axis_angle
from rt_models.action_space import ActionSpec
from rt_models.spec import DatasetContract

Rotation = Literal["axis_angle", "euler_xyz"]


@dataclass(frozen=True, kw_only=True)
class SevenNumbers(Adapter):
    """Displacement, rotation and gripper of one hand.

    One of the command's numbers is `position_unit_m` metres or `rotation_unit_rad` radians; 1 passes physical values
    on. What the contract calls unitless is passed on as it is, and its rotation is not converted: nothing is known of
    it. The limits are symmetric; `euler_limit` bounds roll, pitch and yaw before they are converted.
    """

    rotation: Rotation = "axis_angle"
    position_unit_m: float = 1.0
    rotation_unit_rad: float = 1.0
    position_limit: float = np.inf
    rotation_limit: float = np.inf
    euler_limit: float = np.inf

    def __post_init__(self) -> None:
        for name in ("position_unit_m", "rotation_unit_rad", "position_limit", "rotation_limit", "euler_limit"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{type(self).__name__}.{name} must be above 0, got {getattr(self, name)}")

    def missing(self, known: Sequence[str]) -> list[str]:
        return end_effector.missing(known)

    def misread(self, space: ActionSpec, side: DatasetContract) -> str:
        return end_effector.misread(space, side)

    def names(self, known: Sequence[str]) -> Sequence[str]:
        turned = "axis_angle" if self.rotation == "axis_angle" else "euler"
        return (*(f"delta_{axis}" for axis in "xyz"), *(f"{turned}_{axis}" for axis in "xyz"), "gripper")

    def unit_of(self, name: str, units: Units) -> str:
        if name == "gripper":
            return self.gripper_unit()
        is_position = name.startswith("delta_")
        unit = end_effector.position_unit(units) if is_position else end_effector.rotation_unit(units)
        size = self.position_unit_m if is_position else self.rotation_unit_rad
        return unit if size == 1 or unit == "unitless" else f"{size:g} {unit}"

    def command(self, values: Values, units: Units) -> np.ndarray:
        motion = Motion.of(values)
        turned = np.clip(motion.rotation_3, -self.euler_limit, self.euler_limit)
        if self._converts(units):
            turned = euler_to_axis_angle(*turned)
        position = motion.position_3 / self._position_size(units)
        position = np.clip(position, -self.position_limit, self.position_limit)
        turned = np.clip(turned / self._rotation_size(units), -self.rotation_limit, self.rotation_limit)
        return np.array([*position, *turned, self.gripper_of(motion.closedness)], np.float32)

    def clipped(self, values: Values, units: Units) -> list[str]:
        if min(self.position_limit, self.rotation_limit, self.euler_limit) == np.inf:
            return []
        unlimited = replace(self, position_limit=np.inf, rotation_limit=np.inf, euler_limit=np.inf)
        return changed(self.names(()), self.command(values, units), unlimited.command(values, units))

    def values(self, command: np.ndarray, units: Units) -> dict[str, float]:
        turned = np.asarray(command[3:6], np.float64) * self._rotation_size(units)
        motion = Motion(
            position_3=np.asarray(command[:3], np.float64) * self._position_size(units),
            rotation_3=axis_angle_to_euler(turned) if self._converts(units) else turned,
            closedness=self.closedness_of(float(command[6])),
        )
        return motion.values(units)

    @abstractmethod
    def gripper_of(self, closedness: float) -> float:
        """The command for closedness, +1 closed to -1 open; NaN for NaN."""

    @abstractmethod
    def closedness_of(self, gripper: float) -> float:
        """The inverse of `gripper_of`, of what it keeps."""

    @abstractmethod
    def gripper_unit(self) -> str:
        """What the gripper's number means."""

    def _converts(self, units: Units) -> bool:
        return self.rotation == "axis_angle" and end_effector.rotation_unit(units) == "rad"

    def _position_size(self, units: Units) -> float:
        return 1.0 if end_effector.position_unit(units) == "unitless" else self.position_unit_m

    def _rotation_size(self, units: Units) -> float:
        return 1.0 if end_effector.rotation_unit(units) == "unitless" else self.rotation_unit_rad
