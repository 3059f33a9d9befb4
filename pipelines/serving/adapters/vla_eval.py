"""The vla-eval harness's 7-D action: displacement (3), rotation (3), gripper (1).

Facts of vla-eval 0.8.0 `specs.py`: position `delta_xyz`, rotation `axis_angle` or `euler_xyz`, gripper
`binary_close_positive`, `binary_close_negative`, `binary_close_01`, `continuous_01` (1 is open) or `raw`. Our policies
command closedness, +1 closes, or in 7-D spaces openness, 1 is open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.serving.adapters.base import (
    Adapter,
    Units,
    Values,
    axis_angle_to_euler,
    euler_to_axis_angle,
    number,
)

Rotation = Literal["axis_angle", "euler_xyz"]
Gripper = Literal["binary_close_positive", "binary_close_negative", "binary_close_01", "continuous_01", "raw"]

_AXES = "xyz"
POSITION = tuple(f"world_vector_{axis}" for axis in _AXES)
ROTATION = tuple(f"rotation_delta_{axis}" for axis in _AXES)
CLOSEDNESS = "gripper_closedness_action"


@dataclass(frozen=True, kw_only=True)
class VlaEval(Adapter):
    """7-D: what the harness's benchmarks take.

    A unit of the command is `position_scale_m` metres and `rotation_scale_rad` radians; 1 passes physical values on. A
    dimension whose unit is not known ("unitless") is passed on as it is.
    """

    rotation: Rotation = "axis_angle"
    gripper: Gripper = "binary_close_positive"
    position_scale_m: float = 1.0
    rotation_scale_rad: float = 1.0

    def __post_init__(self) -> None:
        if not (self.position_scale_m > 0 and self.rotation_scale_rad > 0):
            raise ValueError(
                f"position_scale_m {self.position_scale_m} and rotation_scale_rad {self.rotation_scale_rad} must be "
                f"above 0"
            )

    def needs(self) -> Sequence[str]:
        return (*POSITION, *ROTATION, CLOSEDNESS)

    def names(self, known: Sequence[str]) -> Sequence[str]:
        turned = "axis_angle" if self.rotation == "axis_angle" else "euler"
        return (*(f"delta_{axis}" for axis in _AXES), *(f"{turned}_{axis}" for axis in _AXES), "gripper")

    def unit_of(self, name: str, units: Units) -> str:
        if name == "gripper":
            return self.gripper
        source = POSITION[0] if name.startswith("delta_") else ROTATION[0]
        scale = self.position_scale_m if name.startswith("delta_") else self.rotation_scale_rad
        return units[source] if scale == 1 or units[source] == "unitless" else f"{scale:g} {units[source]}"

    def command(self, values: Values, units: Units) -> np.ndarray:
        position = np.array([number(values, name) for name in POSITION])
        turned = np.array([number(values, name) for name in ROTATION])
        if units[ROTATION[0]] == "rad" and self.rotation == "axis_angle":
            turned = euler_to_axis_angle(*turned)
        gripper = gripper_command(number(values, CLOSEDNESS), self.gripper)
        scaled = position / self._scale(POSITION[0], units), turned / self._scale(ROTATION[0], units)
        return np.array([*scaled[0], *scaled[1], gripper], np.float32)

    def values(self, command: np.ndarray, units: Units) -> dict[str, float]:
        position = np.asarray(command[:3], np.float64) * self._scale(POSITION[0], units)
        turned = np.asarray(command[3:6], np.float64) * self._scale(ROTATION[0], units)
        if units[ROTATION[0]] == "rad" and self.rotation == "axis_angle":
            turned = axis_angle_to_euler(turned)
        named = zip((*POSITION, *ROTATION), (*position, *turned), strict=True)
        return {name: float(value) for name, value in named} | {
            CLOSEDNESS: closedness_of(float(command[6]), self.gripper)
        }

    def _scale(self, name: str, units: Units) -> float:
        if units[name] == "unitless":
            return 1.0
        return self.position_scale_m if name in POSITION else self.rotation_scale_rad


def gripper_command(closedness: float, convention: Gripper) -> float:
    """From closedness, +1 closed to -1 open. A binary gripper closes from just above 0 on."""
    if np.isnan(closedness):
        return closedness
    closes = closedness > 0
    if convention == "binary_close_positive":
        return 1.0 if closes else -1.0
    if convention == "binary_close_negative":
        return -1.0 if closes else 1.0
    if convention == "binary_close_01":
        return 1.0 if closes else 0.0
    return (1 - closedness) / 2 if convention == "continuous_01" else closedness


def closedness_of(command: float, convention: Gripper) -> float:
    """The inverse; of a binary convention, of what it keeps."""
    if convention in ("binary_close_positive", "raw"):
        return command
    if convention == "binary_close_negative":
        return -command
    return command * 2 - 1 if convention == "binary_close_01" else 1 - 2 * command
