"""The motion of an arm's hand, read from the names that action spaces give it, and written back to them.

RT-1's space has world_vector, rotation_delta and gripper_closedness_action (+1 closes); 7-D spaces have position_delta,
rotation_delta and gripper_open (1 is open) or gripper_closed (1 is closed).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.serving.adapters.base import Units, Values, number
from rt_models.action_space import ActionSpec
from rt_models.spec import DatasetContract, is_euler

_AXES = "xyz"
_POSITIONS = ("world_vector", "position_delta")
_ROTATION = "rotation_delta"
_LENGTHS = ("m", "unitless", "scaled", "unknown")
"""What a displacement may be in; one without a unit is passed on as it is."""


@dataclass(frozen=True, kw_only=True)
class _Gripper:
    """A gripper's dimension: to closedness, +1 closed to -1 open, and back."""

    convention: str
    closedness: Callable[[float], float]
    value: Callable[[float], float]


_GRIPPERS = {
    "gripper_closedness_action": _Gripper(
        convention="+1 closes, -1 opens", closedness=lambda value: value, value=lambda closed: closed
    ),
    "gripper_open": _Gripper(
        convention="1 is open, 0 is closed",
        closedness=lambda value: 1 - 2 * value,
        value=lambda closed: (1 - closed) / 2,
    ),
    "gripper_closed": _Gripper(
        convention="1 is closed, 0 is open",
        closedness=lambda value: 2 * value - 1,
        value=lambda closed: (1 + closed) / 2,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Physical: displacement (3,), rotation (3,) as roll, pitch, yaw where its unit is known, and closedness."""

    position_3: np.ndarray
    rotation_3: np.ndarray
    closedness: float

    @staticmethod
    def of(values: Values) -> Motion:
        position = _known(values, _POSITIONS)
        (gripper,) = [name for name in _GRIPPERS if name in values][:1]
        return Motion(
            position_3=np.array([number(values, f"{position}_{axis}") for axis in _AXES]),
            rotation_3=np.array([number(values, f"{_ROTATION}_{axis}") for axis in _AXES]),
            closedness=_GRIPPERS[gripper].closedness(number(values, gripper)),
        )

    def values(self, units: Units) -> dict[str, float]:
        """By the dimensions that the policy has."""
        position = _known(units, _POSITIONS)
        (gripper,) = [name for name in _GRIPPERS if name in units][:1]
        named = {f"{position}_{axis}": float(value) for axis, value in zip(_AXES, self.position_3, strict=True)}
        named |= {f"{_ROTATION}_{axis}": float(value) for axis, value in zip(_AXES, self.rotation_3, strict=True)}
        return named | {gripper: _GRIPPERS[gripper].value(self.closedness)}


def missing(known: Sequence[str]) -> list[str]:
    """The dimensions that a policy lacks to move a hand, in words."""
    lacking = [] if _known(known, _POSITIONS) else [f"{' or '.join(_POSITIONS)} (x, y, z)"]
    lacking += [] if f"{_ROTATION}_x" in known else [f"{_ROTATION} (x, y, z)"]
    return lacking + ([] if any(name in known for name in _GRIPPERS) else [" or ".join(_GRIPPERS)])


def misread(space: ActionSpec, side: DatasetContract) -> str:
    """Why a dataset's dimensions are no motion as it is read here: a displacement, roll, pitch and yaw, and a gripper
    that holds a place. Empty where they are."""
    for name, unit, is_there in zip(space.names, side.units, side.action_mask, strict=True):
        if is_there and (name.startswith(_POSITIONS) and unit not in _LENGTHS):
            return f"{name} is in {unit}, and it commands metres"
        if is_there and name.startswith(_ROTATION) and unit.endswith("/s"):
            return f"{name} is in {unit}, and it commands a turn"
    for name, meaning, is_there in zip(space.names, side.meanings, side.action_mask, strict=False):
        is_rotation = name.startswith(_ROTATION)
        if is_there and (is_rotation or name.startswith(_POSITIONS)) and meaning.kind not in ("", "delta"):
            return f"{name} is declared {meaning.kind}, and it commands a displacement"
        if is_there and is_rotation and not is_euler(meaning.rotation):
            return f"{name} is declared {meaning.rotation}, and it takes roll, pitch and yaw"
        if is_there and name in _GRIPPERS and meaning.kind not in ("", "absolute"):
            return f"{name} is declared {meaning.kind}, and it commands a place to hold"
        if is_there and name in _GRIPPERS and space.gripper not in (_GRIPPERS[name].convention, "none"):
            return f"of {name} it takes {_GRIPPERS[name].convention}, and the space says {space.gripper}"
    return ""


def position_unit(units: Units) -> str:
    return units[f"{_known(units, _POSITIONS)}_x"]


def rotation_unit(units: Units) -> str:
    return units[f"{_ROTATION}_x"]


def _known(names: Mapping[str, object] | Sequence[str], groups: Sequence[str]) -> str:
    return next((group for group in groups if f"{group}_x" in names), "")


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
