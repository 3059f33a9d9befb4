"""SIMPLER's two robots, with the arithmetic of its RT-1 wrapper (SimplerEnv 4ab7178, `policies/rt1/rt1_model.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.serving.adapters.base import Units
from pipelines.serving.adapters.seven import Rotation, SevenNumbers

_DEAD_BAND = 0.01


@dataclass(frozen=True, kw_only=True)
class GoogleRobot(SevenNumbers):
    """Displacement as it is; the rotation's three numbers used as an axis-angle vector, without conversion; +1 closes.

    `gripper` "vla_eval": the harness's SimplerEnv with gripper_mode sticky takes (1 - closedness) / 2, and holds a
    command for 15 steps where SIMPLER's own wrapper does not.
    """

    gripper: Literal["simpler", "vla_eval"] = "simpler"

    def gripper_of(self, closedness: float) -> float:
        settled = 0.0 if abs(closedness) < _DEAD_BAND else closedness
        return (1 - settled) / 2 if self.gripper == "vla_eval" else settled

    def closedness_of(self, gripper: float) -> float:
        return 1 - 2 * gripper if self.gripper == "vla_eval" else gripper

    def gripper_unit(self) -> str:
        return "0 closed, 1 open, sticky" if self.gripper == "vla_eval" else "+1 closes, -1 opens"

    def _converts(self, units: Units) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class WidowXBridge(SevenNumbers):
    """Displacement within 0.05 m and roll, pitch, yaw within 0.25 rad, the range of RT-1-X's Bridge constants; they
    become an axis-angle vector; the gripper is binary, +1 opens."""

    rotation: Rotation = "axis_angle"
    position_limit: float = 0.05
    euler_limit: float = 0.25

    def gripper_of(self, closedness: float) -> float:
        if closedness != closedness:
            return closedness
        return 1.0 if -closedness > 0 else -1.0

    def closedness_of(self, gripper: float) -> float:
        return -gripper

    def gripper_unit(self) -> str:
        return "+1 opens, -1 closes"
