"""DROID through openpi's client: seven joint velocities and the gripper's place, at 15 Hz.

The client executes 8 steps of an answer, makes the gripper 0 or 1 at 0.5 (1 is closed) and clips velocities to -1 to 1.
A policy that commands a hand cannot drive it: joint velocities do not follow from a displacement alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.serving.adapters.base import Adapter, Units, Values, number

_JOINTS = tuple(f"joint_velocity_{joint}" for joint in range(7))
_CLOSED = "gripper_closed"


@dataclass(frozen=True, kw_only=True)
class Droid(Adapter):
    """8-D: a policy of joint velocities and `gripper_closed`."""

    image_keys: tuple[str, ...] = ("observation/exterior_image_1_left",)
    text_keys: tuple[str, ...] = ("prompt",)

    def missing(self, known: Sequence[str]) -> list[str]:
        return [name for name in (*_JOINTS, _CLOSED) if name not in known]

    def names(self, known: Sequence[str]) -> Sequence[str]:
        return (*_JOINTS, _CLOSED)

    def unit_of(self, name: str, units: Units) -> str:
        return units[name]

    def command(self, values: Values, units: Units) -> np.ndarray:
        return np.array([number(values, name) for name in (*_JOINTS, _CLOSED)], np.float32)

    def values(self, command: np.ndarray, units: Units) -> dict[str, float]:
        return {name: float(value) for name, value in zip((*_JOINTS, _CLOSED), command, strict=True)}
