"""What a dataset's fields mean: cameras, instruction, actions with units and signs, proprioception, defects.

A `DatasetSpec` is data all the way down, so that it can be hashed, printed and written by hand. Its target is RT-1's
11-D space (`rt_models.spec.rt1_action_spec`): canonical values are physical where the source's unit is known and marked
"unitless" where it is not; nothing is rescaled here. Each dataset is one file of `preprocessing/openx/`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import math
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, cast

import numpy as np

from preprocessing.rlds import Episode
from preprocessing.tfds.features import Column, naming
from rt_models.action_space import ARM, TERMINATE, rt1_action_spec

GROUPS: dict[str, slice] = {
    "terminate_episode": slice(0, 1),
    "world_vector": slice(1, 4),
    "rotation_delta": slice(4, 7),
    "gripper_closedness_action": slice(7, 8),
    "base_displacement_vertical_rotation": slice(8, 9),
    "base_displacement_vector": slice(9, 11),
}
ACTION_SIZE = 11

Steps = Mapping[str, Column]


# --- Actions ---


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
        column = np.asarray(steps[self.path])
        column = column.reshape(len(column), -1).astype(np.float64)
        if column.shape[1] < self.first + self.width:
            raise ValueError(f"{self.path} has {column.shape[1]} values, {self.group} needs {self.first + self.width}")
        return column[:, self.first : self.first + self.width] * self.scale + self.offset


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
        column = np.asarray(steps[self.path])
        column = column.reshape(len(column), -1)
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


# --- Instructions ---


class Instruction(Protocol):
    """Where the instruction of each step comes from."""

    @property
    def path(self) -> str: ...
    def texts(self, episode: Episode) -> list[str]:
        """One instruction per step."""
        ...


@dataclass(frozen=True, kw_only=True)
class Text:
    """A string of every step, or one string of the episode."""

    path: str

    def texts(self, episode: Episode) -> list[str]:
        if self.path in episode.steps:
            return [text.decode() for text in cast(list[bytes], episode.steps[self.path])]
        return [episode.metadata[self.path].decode()] * episode.num_steps


@dataclass(frozen=True, kw_only=True)
class PaddedBytes:
    """UTF-8 bytes as integers of every step, padded with zeros, as Language Table has them."""

    path: str

    def texts(self, episode: Episode) -> list[str]:
        column = np.asarray(episode.steps[self.path]).astype(np.uint8)
        return [row.tobytes().rstrip(b"\0").decode() for row in column]


@dataclass(frozen=True, kw_only=True)
class TaskCode:
    """An instruction made from the episode's task code: "lift-any" becomes "lift any"."""

    path: str

    def texts(self, episode: Episode) -> list[str]:
        code = episode.metadata[self.path].decode()
        return [" ".join(code.replace("_", " ").replace("-", " ").split())] * episode.num_steps


OXE_INSTRUCTION = Text(path="observation/natural_language_instruction")
OXE_EMBEDDING = "observation/natural_language_embedding"


# --- Flags ---


class Flag(Protocol):
    """A named bit of every step: something that training may want to leave out. Conversion drops nothing."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str | None: ...
    def marks(self, episode: Episode) -> np.ndarray:
        """bool (N,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class FirstActionZero:
    """The first step, where the first `width` values of its action are zero within `tolerance`."""

    path: str
    width: int
    tolerance: float = 1e-5
    name: str = "first_zero_action"

    def marks(self, episode: Episode) -> np.ndarray:
        action = np.asarray(episode.steps[self.path]).reshape(episode.num_steps, -1)[:, : self.width]
        return (np.arange(episode.num_steps) == 0) & (np.abs(action) < self.tolerance).all(axis=1)


@dataclass(frozen=True, kw_only=True)
class Equals:
    """Steps whose field `path` equals `value`; a field of the episode marks all of its steps or none."""

    name: str
    path: str
    value: float

    def marks(self, episode: Episode) -> np.ndarray:
        if self.path in episode.steps:
            return np.asarray(episode.steps[self.path]).reshape(episode.num_steps, -1)[:, 0] == self.value
        return np.full(episode.num_steps, bool(episode.metadata[self.path] == self.value))


@dataclass(frozen=True, kw_only=True)
class Always:
    """Every step: a defect of the whole dataset, such as one constant instruction."""

    name: str
    path: None = None

    def marks(self, episode: Episode) -> np.ndarray:
        return np.ones(episode.num_steps, bool)


# --- The whole ---


@dataclass(frozen=True, kw_only=True)
class Proprio:
    """A proprioceptive column: `names` and `units` of its (flattened) values."""

    path: str
    names: tuple[str, ...]
    units: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.units):
            raise ValueError(f"proprio {self.path}: {len(self.names)} names for {len(self.units)} units")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One dataset. `cameras` maps a role to a path, the main camera's role is "image".

    `embedding` is the path of vectors that the episodes ship and `embedding_encoder` what made them. `action` says how
    the canonical values follow; `source_actions` are the paths kept verbatim. `gripper` says what the canonical number
    commands: "absolute" a closedness to hold, "relative" a change (0 = none). `control_hz` is in steps a second, or the
    path of the episode's field that records it. `ignored_marks` are step marks that mean something
    else here. `notes` are known defects, for readers.
    """

    name: str
    cameras: Mapping[str, str]
    instruction: Instruction
    embedding: str | None = None
    embedding_encoder: str | None = None
    action: tuple[ActionPart, ...]
    source_actions: tuple[str, ...]
    gripper: Literal["absolute", "relative", "none"]
    control_hz: float | str
    proprio: tuple[Proprio, ...] = ()
    flags: tuple[Flag, ...] = ()
    ignored_marks: tuple[str, ...] = field(default=(), repr=False)
    notes: str = ""

    def __post_init__(self) -> None:
        if "image" not in self.cameras:
            raise ValueError(f"dataset spec {self.name}: the main camera's role must be 'image'")
        if (self.embedding is None) != (self.embedding_encoder is None):
            raise ValueError(f"dataset spec {self.name}: embedding and embedding_encoder go together")
        groups = [part.group for part in self.action]
        unknown = [group for group in groups if group not in GROUPS]
        if unknown or not groups or len(set(groups)) != len(groups):
            raise ValueError(f"dataset spec {self.name}: action groups {groups}, each at most once of {list(GROUPS)}")
        if not isinstance(self.control_hz, str):
            require_rate(self.control_hz)
        if len({flag.name for flag in self.flags}) != len(self.flags) or len(self.flags) > 32:
            raise ValueError(f"dataset spec {self.name}: at most 32 flags of different names")

    @property
    def action_mask(self) -> tuple[bool, ...]:
        """(11,): True where the dataset has the dimension."""
        mask = np.zeros(ACTION_SIZE, bool)
        for part in self.action:
            mask[_place(part)] = True
        return tuple(mask.tolist())

    @property
    def units(self) -> tuple[str, ...]:
        """(11,): physical units of the canonical values; RT-1's own on dimensions that the dataset lacks."""
        units = [dimension.unit for dimension in rt1_action_spec().dimensions]
        for part in self.action:
            units[_place(part)] = [part.unit] * part.width
        return tuple(units)

    @property
    def proprio_names(self) -> tuple[str, ...]:
        return tuple(f"{p.path.rpartition('/')[2]}/{name}" for p in self.proprio for name in p.names)

    @property
    def proprio_units(self) -> tuple[str, ...]:
        return tuple(unit for p in self.proprio for unit in p.units)

    def paths(self, cameras: tuple[str, ...]) -> tuple[str, ...]:
        """Every field that conversion needs, with these cameras."""
        return tuple(dict.fromkeys([*self.step_paths(cameras), self.instruction.path, *self.number_paths()]))

    def step_paths(self, cameras: tuple[str, ...]) -> tuple[str, ...]:
        """Those that must be there at every step."""
        paths = [*(self.cameras[role] for role in cameras), *self.source_actions]
        paths += [part.path for part in (*self.action, *self.proprio)]
        return (*paths, *(flag.path for flag in self.flags if isinstance(flag, FirstActionZero)))

    def number_paths(self) -> tuple[str, ...]:
        """Those that are read as numbers."""
        paths = [field.path for field in (*self.action, *self.proprio)]
        paths += [flag.path for flag in self.flags if flag.path]
        return (*paths, *([self.control_hz] if isinstance(self.control_hz, str) else []))

    def standardize(self, steps: Steps) -> np.ndarray:
        """float32 (N, 11) canonical physical actions; dimensions that the dataset lacks are 0 (terminate: "arm").

        Raises ValueError naming field and step for values that are not finite as float32.
        """
        action_NA = np.zeros((len(steps[self.action[0].path]), ACTION_SIZE), np.float32)
        action_NA[:, 0] = ARM
        for part in self.action:
            with naming(part.path), np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
                values_NW = part.values(steps)
                action_NA[:, _place(part)] = values_NW
            _require_finite(part, values_NW, action_NA[:, _place(part)])
        return action_NA

    def proprioception(self, steps: Steps) -> np.ndarray:
        """float32 (N, P), in the order of `proprio_names`."""
        columns = []
        for part in self.proprio:
            with naming(part.path), np.errstate(over="ignore"):
                column = np.asarray(steps[part.path], np.float32).reshape(len(steps[part.path]), -1)
                if column.shape[1] != len(part.names):
                    raise ValueError(f"{part.path} has {column.shape[1]} values, its spec names {len(part.names)}")
                columns.append(column)
        return np.concatenate(columns, axis=1)

    def rate_hz(self, episode: Episode) -> float:
        """Steps a second of this episode. Raises ValueError if the recorded number can be no rate."""
        recorded = self.control_hz
        return require_rate(episode.metadata[recorded] if isinstance(recorded, str) else recorded)

    def flag_bits(self, episode: Episode) -> np.ndarray:
        """uint32 (N,): bit i is set where flag i holds."""
        bits = np.zeros(episode.num_steps, np.uint32)
        for number, flag in enumerate(self.flags):
            with naming(flag.path or flag.name):
                bits |= flag.marks(episode).astype(np.uint32) << np.uint32(number)
        return bits

    def hash(self) -> str:
        """A short id of everything declared but the notes."""
        declared = f"{replace(self, notes='')}{self.ignored_marks or ''}"
        return hashlib.sha256(declared.encode()).hexdigest()[:16]


def require_rate(control_hz: float | str) -> float:
    """`control_hz` as a number. Raises ValueError unless it is finite and above 0."""
    if not 0 < float(control_hz) < math.inf:
        raise ValueError(f"control_hz is {control_hz}, and must be a number of steps a second above 0")
    return float(control_hz)


def _require_finite(part: ActionPart, values_NW: np.ndarray, stored_NW: np.ndarray) -> None:
    for place in np.argwhere(~np.isfinite(stored_NW)):
        value = float(values_NW[tuple(place)])
        held = f"comes to {value:.3g} as {part.group}, more than float32 holds"
        raise ValueError(f"{part.path} of step {place[0]} {held if math.isfinite(value) else 'is not finite'}")


def _place(part: ActionPart) -> slice:
    """The canonical dimensions that a part fills."""
    start = GROUPS[part.group].start
    return slice(start, start + part.width)


def names() -> list[str]:
    """The datasets that have a spec, by file name."""
    import preprocessing.openx

    return sorted(module.name for module in pkgutil.iter_modules(preprocessing.openx.__path__))


def load(name: str) -> DatasetSpec:
    """The spec of a dataset. Raises ValueError with the nearest name if there is none."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? Known are" if near else "known are"
        raise ValueError(
            f"there is no dataset spec {name!r}: {hint} {', '.join(known)}; give one of these or your own .yaml file "
            f"with --dataset (--draft-spec FILE writes a draft)"
        )
    return importlib.import_module(f"preprocessing.openx.{name}").SPEC
