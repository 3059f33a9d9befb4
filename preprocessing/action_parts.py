"""How the dimensions of the canonical action follow from a dataset's step columns: the parts of a `DatasetSpec`.

`Linear` and `Terminate` fill the groups of RT-1's 11-D space, `Columns` the dimensions of any other space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from preprocessing.tfds.features import Column
from rt_models.action_space import ARM, RT1_SPACE, TERMINATE, DimensionMeaning, Kind

GROUPS = RT1_SPACE.groups()
"""Places of the groups of RT-1's 11-D space."""

Steps = Mapping[str, Column]


class ActionPart(Protocol):
    """How one group of the canonical action, or its first `width` dimensions, follows from the step columns."""

    @property
    def group(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def path(self) -> str: ...
    @property
    def unit(self) -> str: ...
    def values(self, steps: Steps) -> np.ndarray:
        """float (N, width)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Linear:
    """canonical = source[:, first:first + width] * scale + offset; `unit` is that of the canonical value.

    `width` 0 is the whole group.
    """

    group: str
    path: str
    unit: str
    first: int = 0
    width: int = 0
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        whole = GROUPS.get(self.group, slice(0, 0))
        size = whole.stop - whole.start
        if self.first < 0 or not 0 <= self.width <= size:
            raise ValueError(f"{self.group}: first {self.first} must be at least 0, width {self.width} at most {size}")
        if not (math.isfinite(self.scale) and math.isfinite(self.offset)):
            raise ValueError(f"{self.group}: scale {self.scale} and offset {self.offset} must be finite")
        object.__setattr__(self, "width", self.width or size)

    def values(self, steps: Steps) -> np.ndarray:
        return _read(self, steps) * self.scale + self.offset


@dataclass(frozen=True, kw_only=True)
class Terminate:
    """The class of `terminate_episode` from RT-1's one-hot (3,), or from a number that is 1 where the episode ends.

    A one-hot without a 1 is read as "arm": the official argmax would read it as "terminate".
    """

    path: str
    group: Literal["terminate_episode"] = "terminate_episode"
    width: Literal[1] = 1
    unit: str = "class"

    def values(self, steps: Steps) -> np.ndarray:
        column = flat(steps, self.path)
        if column.shape[1] == 3:
            return np.where(column.any(axis=1), column.argmax(axis=1), ARM)[:, None]
        return np.where(column[:, :1] == 1, TERMINATE, ARM)


RT1_ACTION: tuple[ActionPart, ...] = (
    Terminate(path="action/terminate_episode"),
    Linear(group="world_vector", path="action/world_vector", unit="m"),
    Linear(group="rotation_delta", path="action/rotation_delta", unit="rad"),
    Linear(group="gripper_closedness_action", path="action/gripper_closedness_action", unit="closedness"),
    Linear(group="base_displacement_vertical_rotation", path="action/base_displacement_vertical_rotation", unit="rad"),
    Linear(group="base_displacement_vector", path="action/base_displacement_vector", unit="m"),
)


# --- Other spaces ---

_STILL: dict[str, float] = {"delta": 0.0, "velocity": 0.0}  # the value of each kind that moves nothing


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Neighbouring dimensions of a space from neighbouring values of a source field, and what they mean.

    canonical = source[:, first:first + len(names)] * scale + offset; `unit` is that of the canonical value. `state` are
    the proprioceptive columns that the dimensions move, one each, or none. `neutral` is the canonical value that
    commands nothing: 0 for a delta or a velocity, for a gripper at an absolute place the dataset's mean ("mean"), else
    none, unless it is declared.
    """

    names: tuple[str, ...]
    path: str
    unit: str
    kind: Kind | Literal[""]
    state: tuple[str, ...] = ()
    frame: str = ""
    rotation: str = ""
    neutral: float | Literal["by kind", "none", "mean"] = "by kind"
    first: int = 0
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.neutral, str):
            object.__setattr__(self, "neutral", float(self.neutral))
        numbers = [self.scale, self.offset, *([self.neutral] if isinstance(self.neutral, float) else [])]
        if self.first < 0 or not all(map(math.isfinite, numbers)) or not self.scale:
            raise ValueError(
                f"{self.group}: first {self.first} must be at least 0, scale {self.scale}, offset {self.offset} and "
                f"neutral {self.neutral} finite, and scale not 0"
            )
        if self.state and len(self.state) != len(self.names):
            raise ValueError(f"{self.group}: {len(self.state)} columns of state for {len(self.names)} dimensions")

    @property
    def group(self) -> str:
        """The first dimension, which says where the part begins."""
        return self.names[0]

    @property
    def width(self) -> int:
        return len(self.names)

    def values(self, steps: Steps) -> np.ndarray:
        return _read(self, steps) * self.scale + self.offset

    def meanings(self, mean_W: np.ndarray) -> list[DimensionMeaning]:
        """What each dimension commands; `mean_W` (width,) are the dataset's mean values."""
        states = self.state or ("",) * self.width
        return [
            DimensionMeaning(
                kind=self.kind, frame=self.frame, rotation=self.rotation, state=state, neutral=self._neutral(name, mean)
            )
            for name, state, mean in zip(self.names, states, mean_W.tolist(), strict=True)
        ]

    def _neutral(self, name: str, mean: float) -> float | None:
        if isinstance(self.neutral, float):
            return self.neutral
        is_held = self.neutral == "by kind" and self.kind == "absolute" and "gripper" in name
        if self.neutral == "mean" or is_held:
            return mean
        return _STILL.get(self.kind) if self.neutral == "by kind" else None


def flat(steps: Steps, path: str) -> np.ndarray:
    """(N, W) of a field that has a value or a vector each step. Raises ValueError if it has more, as a chunk of actions
    does: which of them is the step's own is not known."""
    column = np.asarray(steps[path])
    if sum(size > 1 for size in column.shape[1:]) > 1:
        raise ValueError(f"{path} has values of shape {column.shape[1:]} each step: give a field with one action")
    return column.reshape(len(column), -1)


def _read(part: Linear | Columns, steps: Steps) -> np.ndarray:
    """float64 (N, width) of the source's own values. Raises ValueError if the field has too few."""
    column = flat(steps, part.path).astype(np.float64)
    if column.shape[1] < part.first + part.width:
        raise ValueError(f"{part.path} has {column.shape[1]} values, {part.group} needs {part.first + part.width}")
    return column[:, part.first : part.first + part.width]
