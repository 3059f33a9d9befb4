"""OpenVLA's 7-D action, as its clients expect of /act: displacement, roll, pitch, yaw, and a gripper with 1 = open."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.serving.adapters.seven import Rotation, SevenNumbers


@dataclass(frozen=True, kw_only=True)
class OpenVLA(SevenNumbers):
    """7-D, physical."""

    rotation: Rotation = "euler_xyz"

    def gripper_of(self, closedness: float) -> float:
        return (1 - closedness) / 2

    def closedness_of(self, gripper: float) -> float:
        return 1 - 2 * gripper

    def gripper_unit(self) -> str:
        return "1 open, 0 closed"
