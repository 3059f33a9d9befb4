"""Action spaces: what makes two of them one (`ActionSpace`), how a space is binned into tokens (`ActionSpec`), and what
a dimension commands in one dataset (`DimensionMeaning`).

A space is data: `SPACES` are those that ship, and a dataset spec may declare one of its own. NumPy and the standard
library only, so that a data job can import it without torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

TERMINATE, ARM, BASE = 0, 1, 2  # classes of `terminate_episode`, in the order of the released one-hot
_CLASS_NAMES = {"terminate_episode": ("terminate", "arm", "base")}
_MOTIONS = ("world_vector", "position_delta", "rotation_delta", "base_displacement")  # 0 is no motion

_ONE_OF_A_RUN = re.compile(r"(.+)_(?:x|y|z|\d+)")  # world_vector_x, left_joint_3

GripperConvention = Literal["+1 closes, -1 opens", "1 is open, 0 is closed", "1 is closed, 0 is open", "none"]
GRIPPER_CONVENTIONS: tuple[GripperConvention, ...] = get_args(GripperConvention)
Binning = Literal["truncate", "centre"]
Kind = Literal["delta", "absolute", "velocity", "effort"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def is_motion(name: str) -> bool:
    """Whether a dimension of this name displaces something by so much a step."""
    return name.startswith(_MOTIONS)


@dataclass(frozen=True, kw_only=True)
class ActionDimension:
    """One scalar of an action.

    `low` and `high` bound the *model* value that is binned; `unit` is the unit of the *physical* value.
    A discrete dimension holds a class number 0 .. `num_classes` - 1 and is never scaled; `classes` name them, but for
    those of `terminate_episode`, whose names are known. `bounded_by`: a convention that holds for all robots, as RT-1's
    radians, or a dataset's statistics, which a scaling must first put between `low` and `high`.
    """

    name: str
    low: float
    high: float
    unit: str
    num_classes: int = 0
    classes: tuple[str, ...] = ()
    bounded_by: Literal["convention", "statistics"] = "convention"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"action dimension {self.name}: needs finite low < high, got [{self.low}, {self.high}]")

    @property
    def discrete(self) -> bool:
        return self.num_classes > 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class of each number, of a dimension whose classes have names; else empty."""
        return self.classes or (_CLASS_NAMES.get(self.name, ()) if self.discrete else ())

    def neutral(self, mean: float) -> float:
        """The physical value that commands nothing, for a dataset without this dimension, whose mean there is `mean`.

        A displacement is 0 and an episode never ends. A gripper that was never commanded stays at the mean. NaN where
        no value is neutral, as of an absolute joint.
        """
        if self.class_names == _CLASS_NAMES["terminate_episode"]:
            return float(ARM)
        if self.name.startswith("gripper"):
            return mean
        return 0.0 if is_motion(self.name) else math.nan


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """An ordered action space and how it is binned.

    `binning`: "truncate" is the official rule, int((a - low) / (high - low) * (bins - 1)), whose decoded values are on
    average half a bin too low; "centre" decodes each of `bins` equal cells at its middle.
    """

    name: str
    dimensions: tuple[ActionDimension, ...]
    gripper: GripperConvention
    bins: int = 256
    binning: Binning = "truncate"

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"action space {self.name}: dimension names repeat in {self.names}")
        needed = max([2, *(dimension.num_classes for dimension in self.dimensions)])
        if self.bins < needed:
            raise ValueError(f"action space {self.name}: bins = {self.bins}, at least {needed} are needed")

    @property
    def size(self) -> int:
        return len(self.dimensions)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dimension.name for dimension in self.dimensions)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high), float32 (A,), of the model values."""
        low = np.array([dimension.low for dimension in self.dimensions], np.float32)
        high = np.array([dimension.high for dimension in self.dimensions], np.float32)
        return low, high

    def discrete(self) -> np.ndarray:
        """bool (A,): True where the dimension is a class number."""
        return np.array([dimension.discrete for dimension in self.dimensions])

    @property
    def bounded_by_statistics(self) -> bool:
        """Whether model values need a scaling that is fitted to a dataset's statistics."""
        return any(dimension.bounded_by == "statistics" for dimension in self.dimensions)

    def with_units(self, units: Mapping[str, str]) -> ActionSpec:
        """The same space with other physical units, e.g. {"world_vector_x": "unitless"}."""
        dimensions = tuple(replace(d, unit=units.get(d.name, d.unit)) for d in self.dimensions)
        return replace(self, dimensions=dimensions)

    def same_space(self, other: ActionSpec) -> bool:
        """Whether values of one can be read as values of the other: names, classes and gripper sign (not the bins)."""
        mine, theirs = ([(d.name, d.num_classes, d.class_names) for d in spec.dimensions] for spec in (self, other))
        return mine == theirs and self.gripper == other.gripper

    def space(self) -> ActionSpace:
        """The space that is binned here."""
        dimensions = (SpaceDimension(name=d.name, classes=d.class_names) for d in self.dimensions)
        return ActionSpace(name=self.name, dimensions=tuple(dimensions), gripper=self.gripper)


@dataclass(frozen=True, kw_only=True)
class DimensionMeaning:
    """What a dimension commands in one dataset, beside its unit.

    `kind` "" where nobody said: the dataset does not have the dimension, or it is a class. `frame` of reference and
    `rotation` convention are words of the dataset's; `state` is the proprioceptive column that the dimension moves.
    `neutral` is the physical value that commands nothing, None where there is none (an absolute joint: 0 is a motion).
    """

    kind: Kind | Literal[""] = ""
    frame: str = ""
    rotation: str = ""
    state: str = ""
    neutral: float | None = None

    def in_words(self) -> str:
        """Kind, rotation and frame, as far as they are declared."""
        rotation, frame = (f" {self.rotation}" if self.rotation else "", f" in {self.frame}" if self.frame else "")
        return f"{self.kind or 'undeclared'}{rotation}{frame}"


# --- Spaces by name ---


@dataclass(frozen=True, kw_only=True)
class SpaceDimension:
    """A dimension of a space."""

    name: str
    """Letters, digits and _."""
    classes: tuple[str, ...] = ()
    """Names of the values of a dimension that is a class number."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z]\w*", self.name):
            raise ValueError(
                f"action dimension {self.name!r}: a name is letters, digits and _, and begins with a letter"
            )
        if len(self.classes) == 1 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"action dimension {self.name}: needs two different classes or more, got {self.classes}")


@dataclass(frozen=True, kw_only=True)
class ActionSpace:
    """What makes two action spaces one: the names and their order, the classes of class dimensions, the gripper.

    Units, frames, rates and statistics are no part of it: each dataset has its own, and one space may hold several.
    """

    name: str
    """What it is called; no part of its identity."""
    dimensions: tuple[SpaceDimension, ...]
    """In their order."""
    gripper: GripperConvention = "none"
    """What the gripper's number means; none without a gripper."""

    def __post_init__(self) -> None:
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if not self.name.strip() or not self.dimensions or twice:
            raise ValueError(
                f"action space {self.name!r}: needs a name and dimensions of different names"
                f"{f', {twice[0]} stands there twice' if twice else ''}"
            )
        if self.gripper not in GRIPPER_CONVENTIONS:
            raise ValueError(f"action space {self.name}: gripper must be one of {', '.join(GRIPPER_CONVENTIONS)}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dimension.name for dimension in self.dimensions)

    @property
    def size(self) -> int:
        return len(self.dimensions)

    @property
    def identity(self) -> tuple[tuple[SpaceDimension, ...], GripperConvention]:
        """All but the name."""
        return self.dimensions, self.gripper

    @property
    def is_rt1(self) -> bool:
        """Whether it is the 11-D space, whose bounds are a convention."""
        return self.identity == RT1_SPACE.identity

    def groups(self) -> dict[str, slice]:
        """Runs of dimensions under one name: world_vector is world_vector_x, _y and _z."""
        groups: dict[str, slice] = {}
        for place, name in enumerate(self.names):
            match = _ONE_OF_A_RUN.fullmatch(name)
            group = match[1] if match and match[1] not in self.names else name
            known = groups.get(group)
            if known is not None and known.stop == place:
                groups[group] = slice(known.start, place + 1)
            else:
                groups[group if known is None else name] = slice(place, place + 1)
        return groups

    def spec(self, *, bins: int = 256, binning: Binning = "truncate", world_vector_limit: float = 1.0) -> ActionSpec:
        """The space as a model bins it: RT-1's own bounds for the 11-D space, else [-1, 1] by statistics.

        Raises ValueError for a `world_vector_limit` where there is no world vector.
        """
        if self.is_rt1:
            return rt1_action_spec(bins=bins, world_vector_limit=world_vector_limit, binning=binning)
        if world_vector_limit != 1.0:
            raise ValueError(
                f"world_vector_limit {world_vector_limit:g} bounds RT-1's world vector, and {self.name} is bounded by "
                f"statistics: leave it at 1"
            )
        dimensions = tuple(_by_statistics(dimension) for dimension in self.dimensions)
        return ActionSpec(name=self.name, dimensions=dimensions, gripper=self.gripper, bins=bins, binning=binning)


def _by_statistics(dimension: SpaceDimension) -> ActionDimension:
    if dimension.classes:
        count = len(dimension.classes)
        return ActionDimension(
            name=dimension.name, low=0, high=count - 1, unit="class", num_classes=count, classes=dimension.classes
        )
    return ActionDimension(name=dimension.name, low=-1, high=1, unit="scaled", bounded_by="statistics")


def rt1_action_spec(
    *, bins: int = 256, world_vector_limit: float = 1.0, binning: Literal["truncate", "centre"] = "truncate"
) -> ActionSpec:
    """RT-1's 11-D space in the order of the released models, one token a dimension.

    google-deepmind/open_x_embodiment 9eeb68b9 `models/rt1.py:286-307`.

    `world_vector_limit` is 1 for RT-1 and 2 for RT-1-X.
    """
    limit = world_vector_limit
    half_pi = math.pi / 2
    dimensions = [ActionDimension(name="terminate_episode", low=0, high=2, unit="class", num_classes=3)]
    dimensions += [ActionDimension(name=f"world_vector_{a}", low=-limit, high=limit, unit="m") for a in "xyz"]
    dimensions += [ActionDimension(name=f"rotation_delta_{a}", low=-half_pi, high=half_pi, unit="rad") for a in "xyz"]
    dimensions += [
        ActionDimension(name="gripper_closedness_action", low=-1, high=1, unit="closedness"),
        ActionDimension(name="base_displacement_vertical_rotation", low=-math.pi, high=math.pi, unit="rad"),
    ]
    dimensions += [ActionDimension(name=f"base_displacement_vector_{a}", low=-1, high=1, unit="m") for a in "xy"]
    return ActionSpec(
        name="rt1-11d", dimensions=tuple(dimensions), gripper="+1 closes, -1 opens", bins=bins, binning=binning
    )


def _space(name: str, *dimensions: str, gripper: GripperConvention = "none") -> ActionSpace:
    return ActionSpace(name=name, dimensions=tuple(SpaceDimension(name=d) for d in dimensions), gripper=gripper)


def _run(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}_{number}" for number in range(count))


_POSE = tuple(f"{group}_{axis}" for group in ("position_delta", "rotation_delta") for axis in "xyz")

RT1_SPACE = rt1_action_spec().space()

SPACES: dict[str, ActionSpace] = {
    space.name: space
    for space in (
        RT1_SPACE,
        # Octo and OpenVLA: octo-models/octo 241fb35 `octo/data/oxe/oxe_standardization_transforms.py`
        _space("end-effector-7d", *_POSE, "gripper_open", gripper="1 is open, 0 is closed"),
        # DROID: seven joint velocities and the gripper's place
        _space("joint-velocity-8d", *_run("joint_velocity", 7), "gripper_closed", gripper="1 is closed, 0 is open"),
        _space("joints-7d", *_run("joint", 7)),
        _space(
            "two-arms-14d",
            *(name for side in ("left", "right") for name in (*_run(f"{side}_joint", 6), f"{side}_gripper_open")),
            gripper="1 is open, 0 is closed",
        ),
        # V-D4RL: dm_control's walker and cheetah, and its humanoid, in the order of their actuators
        _space("actuators-6d", *_run("actuator", 6)),
        _space("actuators-21d", *_run("actuator", 21)),
    )
}


def seven_d_action_spec(*, bins: int = 256) -> ActionSpec:
    """Octo's and OpenVLA's 7-D space: position delta, rotation delta, absolute gripper with 1 = open."""
    return SPACES["end-effector-7d"].spec(bins=bins)
