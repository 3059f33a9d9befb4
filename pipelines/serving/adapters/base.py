"""An adapter makes a robot's observation a question, and an action the numbers that this robot's software expects.

Every adapter has an inverse: from the numbers back to physical values, which a test takes there and back. Absent
dimensions without a neutral value are NaN.

Axes: D numbers of a command.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.serving.observation import Observation, question
from pipelines.serving.question import Question

Values = Mapping[str, float | None]
Units = Mapping[str, str]
"""Unit by dimension, as the policy's contract has them."""

IMAGE_KEYS = (
    "image",
    "observation/image",
    "observation/exterior_image_1_left",
    "full_image",
    "images.primary",
    "images.agentview",
    "images.cam_high",
    "images.*",
    "observation.image",
)
TEXT_KEYS = ("prompt", "instruction", "task_description", "task")


@dataclass(frozen=True, kw_only=True)
class Adapter(ABC):
    """One robot's way of speaking. Configs: frozen, and built from a YAML file's fields."""

    image_keys: tuple[str, ...] = IMAGE_KEYS
    """Where the camera's picture may lie, the first that is there; NAME.CAMERA is one of a map of cameras."""
    text_keys: tuple[str, ...] = TEXT_KEYS
    """Where the instruction may lie."""

    def question(self, observation: Observation) -> Question:
        """Raises Refusal, naming the field."""
        return question(observation, image_keys=self.image_keys, text_keys=self.text_keys)

    @abstractmethod
    def needs(self) -> Sequence[str]:
        """Dimensions that the policy must have."""

    @abstractmethod
    def names(self, known: Sequence[str]) -> Sequence[str]:
        """The names of the D numbers, for a policy with the dimensions `known`."""

    @abstractmethod
    def unit_of(self, name: str, units: Units) -> str:
        """The unit of one of the D numbers."""

    @abstractmethod
    def command(self, values: Values, units: Units) -> np.ndarray:
        """float32 (D,) from physical values by dimension."""

    @abstractmethod
    def values(self, command: np.ndarray, units: Units) -> dict[str, float]:
        """The physical values that a command stands for: the inverse of `command`, where it is within limits."""

    def require_fitting(self, known: Sequence[str]) -> None:
        """Raise ValueError for a policy that lacks a dimension."""
        missing = [name for name in self.needs() if name not in known]
        if missing:
            raise ValueError(
                f"adapter {type(self).__name__} commands {', '.join(missing)}, which the policy does not have "
                f"({', '.join(known)}): choose another --adapter"
            )


def number(values: Values, name: str) -> float:
    value = values[name]
    return math.nan if value is None else value


def euler_to_axis_angle(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """(3,) rotation vector of the rotation Rz(yaw) Ry(pitch) Rx(roll): static axes x, y, z ("sxyz")."""
    half = np.array([roll, pitch, yaw]) / 2
    (cr, cp, cy), (sr, sp, sy) = np.cos(half), np.sin(half)
    w = cr * cp * cy + sr * sp * sy
    xyz = np.array([sr * cp * cy - cr * sp * sy, cr * sp * cy + sr * cp * sy, cr * cp * sy - sr * sp * cy])
    if w < 0:
        w, xyz = -w, -xyz
    length = float(np.linalg.norm(xyz))
    return np.zeros(3) if length == 0 else xyz / length * (2 * math.atan2(length, w))


def axis_angle_to_euler(vector: np.ndarray) -> np.ndarray:
    """(3,) roll, pitch, yaw of a rotation vector; the inverse of `euler_to_axis_angle` for |pitch| below 90 degrees."""
    angle = float(np.linalg.norm(vector))
    x, y, z = np.zeros(3) if angle == 0 else np.asarray(vector) / angle * math.sin(angle / 2)
    w = math.cos(angle / 2)
    roll = math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = math.asin(max(-1.0, min(1.0, 2 * (w * y - z * x))))
    yaw = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return np.array([roll, pitch, yaw])
