"""The vla-eval harness's 7-D action (vla-eval 0.8.0 `specs.py`): position `delta_xyz`, rotation `axis_angle` or
`euler_xyz`, and one of five conventions for the gripper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.serving.adapters.seven import SevenNumbers

Gripper = Literal["binary_close_positive", "binary_close_negative", "binary_close_01", "continuous_01", "raw"]


@dataclass(frozen=True, kw_only=True)
class VlaEval(SevenNumbers):
    """What the harness's benchmarks take. continuous_01: 1 is open; raw: closedness itself, +1 closed to -1 open."""

    gripper: Gripper = "binary_close_positive"

    def gripper_of(self, closedness: float) -> float:
        """A binary gripper closes from just above 0 on."""
        if self.gripper == "raw" or closedness != closedness:
            return closedness
        if self.gripper == "continuous_01":
            return (1 - closedness) / 2
        closed, opened = _BINARY[self.gripper]
        return closed if closedness > 0 else opened

    def closedness_of(self, gripper: float) -> float:
        if self.gripper == "raw":
            return gripper
        if self.gripper == "continuous_01":
            return 1 - 2 * gripper
        return 1.0 if gripper == _BINARY[self.gripper][0] else -1.0

    def gripper_unit(self) -> str:
        return self.gripper


_BINARY = {
    "binary_close_positive": (1.0, -1.0),
    "binary_close_negative": (-1.0, 1.0),
    "binary_close_01": (1.0, 0.0),
}
