"""What a dataset's fields mean: cameras, instruction, actions with units and signs, proprioception, defects.

A `DatasetSpec` is data all the way down, so that it can be hashed, printed and written by hand. Its target is RT-1's
11-D space or another named one (`rt_models.action_space.SPACES`, or the robot's own): canonical values are physical
where the source's unit is known and marked "unitless" where it is not; nothing is rescaled here. Each dataset is one
file of `preprocessing/openx/`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import math
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, cast

import numpy as np

from preprocessing.action_parts import GROUPS as GROUPS
from preprocessing.action_parts import RT1_ACTION as RT1_ACTION
from preprocessing.action_parts import ActionPart, Columns, Steps
from preprocessing.action_parts import Linear as Linear
from preprocessing.action_parts import Terminate as Terminate
from preprocessing.rlds import Episode
from preprocessing.tfds.features import naming
from rt_models.action_space import ARM, KINDS, RT1_SPACE, ActionSpace, DimensionMeaning, SpaceDimension
from rt_models.spec import MAIN_CAMERA, camera_role

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

    @property
    def column_names(self) -> tuple[str, ...]:
        """The values as the store and its readers name them: "state/x"."""
        return tuple(f"{self.path.rpartition('/')[2]}/{name}" for name in self.names)


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One dataset. `cameras` maps a role to a path, the main camera's role is "image"; `optional_cameras` are those
    that some recordings of it lack.

    `embedding` is the path of vectors that the episodes ship and `embedding_encoder` what made them. `space` is the
    action space and `action` says how its values follow; `source_actions` are the paths kept verbatim. `gripper` says
    what the canonical number commands: "absolute" a closedness to hold, "relative" a change (0 = none). `control_hz` is
    in steps a second, or the path of the episode's field that records it. `ignored_marks` are step marks that mean
    something else here. `notes` are known defects, for readers.
    """

    name: str
    cameras: Mapping[str, str]
    optional_cameras: Mapping[str, str] = field(default_factory=dict, repr=False)
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
    space: ActionSpace = field(default=RT1_SPACE, repr=False)
    notes: str = ""

    def __post_init__(self) -> None:
        if MAIN_CAMERA not in self.cameras:
            raise ValueError(f"dataset spec {self.name}: the main camera's role must be {MAIN_CAMERA!r}")
        roles = [camera_role(own) for own in (*self.cameras, *self.optional_cameras)]
        if len(set(roles)) < len(roles):
            raise ValueError(f"dataset spec {self.name}: two cameras are {max(roles, key=roles.count)}: rename one")
        if (self.embedding is None) != (self.embedding_encoder is None):
            raise ValueError(f"dataset spec {self.name}: embedding and embedding_encoder go together")
        self._require_action()
        if not isinstance(self.control_hz, str):
            require_rate(self.control_hz)
        if len({flag.name for flag in self.flags}) != len(self.flags) or len(self.flags) > 32:
            raise ValueError(f"dataset spec {self.name}: at most 32 flags of different names")

    def _require_action(self) -> None:
        """Raise ValueError unless every part fills dimensions of its own in the space."""
        groups = [part.group for part in self.action]
        if self.space.is_rt1:
            unknown = [group for group in groups if group not in GROUPS]
            if unknown or not groups or len(set(groups)) != len(groups):
                raise ValueError(
                    f"dataset spec {self.name}: action groups {groups}, each at most once of {list(GROUPS)}"
                )
            return
        filled = [name for part in self._columns() for name in part.names]
        unknown = [name for name in filled if name not in self.space.names]
        if unknown or not filled or len(set(filled)) < len(filled):
            raise ValueError(
                f"dataset spec {self.name}: action fills {filled}, and needs each at most once of "
                f"{', '.join(self.space.names)} ({self.space.name})"
            )
        for part in self._columns():
            if self.space.names[self._place(part)] != part.names:
                raise ValueError(
                    f"dataset spec {self.name}: {', '.join(part.names)} are not neighbours in {self.space.name}: give "
                    f"each a part of its own"
                )
            if any(
                bool(dimension.classes) == bool(part.kind) for dimension in self.space.dimensions[self._place(part)]
            ):
                raise ValueError(
                    f"dataset spec {self.name}: {part.group} needs a kind ({', '.join(KINDS)}) if it is no class, and "
                    f"none if it is one"
                )
            for state in part.state:
                if state not in self.proprio_names:
                    known = ", ".join(self.proprio_names) or "none"
                    raise ValueError(f"dataset spec {self.name}: {part.group} moves {state!r}, proprio has {known}")

    def _columns(self) -> list[Columns]:
        """The parts of a space that is not RT-1's. Raises ValueError for a part that only fills RT-1's."""
        other = [part.group for part in self.action if not isinstance(part, Columns)]
        if other:
            raise ValueError(
                f"dataset spec {self.name}: {other[0]} fills a group of RT-1's 11-D space, and the actions here are "
                f"{self.space.name}: declare its dimensions with Columns"
            )
        return [part for part in self.action if isinstance(part, Columns)]

    def _place(self, part: ActionPart) -> slice:
        """The canonical dimensions that a part fills."""
        start = GROUPS[part.group].start if self.space.is_rt1 else self.space.names.index(part.group)
        return slice(start, start + part.width)

    @property
    def all_cameras(self) -> dict[str, str]:
        """Role -> path of the cameras that a recording has or may have."""
        return {**self.cameras, **self.optional_cameras}

    @property
    def action_mask(self) -> tuple[bool, ...]:
        """(A,): True where the dataset has the dimension."""
        mask = np.zeros(self.space.size, bool)
        for part in self.action:
            mask[self._place(part)] = True
        return tuple(mask.tolist())

    @property
    def units(self) -> tuple[str, ...]:
        """(A,): physical units of the canonical values; the space's own on dimensions that the dataset lacks."""
        units = [dimension.unit for dimension in self.space.spec().dimensions]
        for part in self.action:
            units[self._place(part)] = [part.unit] * part.width
        return tuple(units)

    def meanings(self, means: Sequence[float]) -> tuple[DimensionMeaning, ...]:
        """(A,) what each dimension commands, `means` (A,) being the dataset's; empty in RT-1's space.

        A dimension that the dataset lacks is neutral at 0 where the name says that it displaces.
        """
        if self.space.is_rt1:
            return ()
        neutral = [dimension.neutral(math.nan) for dimension in self.space.spec().dimensions]
        found = [DimensionMeaning(neutral=None if math.isnan(value) else value) for value in neutral]
        for part in self._columns():
            place = self._place(part)
            found[place] = part.meanings(np.asarray(means)[place])
        return tuple(found)

    @property
    def proprio_names(self) -> tuple[str, ...]:
        return tuple(name for part in self.proprio for name in part.column_names)

    @property
    def proprio_units(self) -> tuple[str, ...]:
        return tuple(unit for p in self.proprio for unit in p.units)

    def paths(self, cameras: tuple[str, ...]) -> tuple[str, ...]:
        """Every field that conversion needs, with these cameras."""
        return tuple(dict.fromkeys([*self.step_paths(cameras), self.instruction.path, *self.number_paths()]))

    def step_paths(self, cameras: tuple[str, ...]) -> tuple[str, ...]:
        """Those that must be there at every step."""
        paths = [*(self.all_cameras[role] for role in cameras), *self.source_actions]
        paths += [part.path for part in (*self.action, *self.proprio)]
        return (*paths, *(flag.path for flag in self.flags if isinstance(flag, FirstActionZero)))

    def number_paths(self) -> tuple[str, ...]:
        """Those that are read as numbers."""
        paths = [field.path for field in (*self.action, *self.proprio)]
        paths += [flag.path for flag in self.flags if flag.path]
        return (*paths, *([self.control_hz] if isinstance(self.control_hz, str) else []))

    def standardize(self, steps: Steps) -> np.ndarray:
        """float32 (N, A) canonical physical actions; dimensions that the dataset lacks are 0 (RT-1's terminate: "arm").

        Raises ValueError naming field and step for values that are not finite as float32, and for a number that is no
        class.
        """
        action_NA = np.zeros((len(steps[self.action[0].path]), self.space.size), np.float32)
        if self.space.is_rt1:
            action_NA[:, 0] = ARM
        for part in self.action:
            place = self._place(part)
            with naming(part.path), np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
                values_NW = part.values(steps)
                action_NA[:, place] = values_NW
            _require_finite(part, values_NW, action_NA[:, place])
            _require_classes(part.path, self.space.dimensions[place], action_NA[:, place])
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
        declared = f"{replace(self, notes='')}{self.ignored_marks or ''}{'' if self.space.is_rt1 else self.space}"
        return hashlib.sha256(declared.encode()).hexdigest()[:16]


def require_rate(control_hz: float | str) -> float:
    """`control_hz` as a number. Raises ValueError unless it is finite and above 0."""
    if not 0 < float(control_hz) < math.inf:
        raise ValueError(f"control_hz is {control_hz}, and must be a number of steps a second above 0")
    return float(control_hz)


def _require_finite(part: ActionPart, values_NW: np.ndarray, stored_NW: np.ndarray) -> None:
    for step, column in zip(*np.nonzero(~np.isfinite(stored_NW)), strict=True):
        value = float(values_NW[step, column])
        held = f"comes to {value:.3g} as {part.group}, more than float32 holds"
        raise ValueError(f"{part.path} of step {step} {held if math.isfinite(value) else 'is not finite'}")


def _require_classes(path: str, dimensions: Sequence[SpaceDimension], stored_NW: np.ndarray) -> None:
    of_classes = [pair for pair in zip(dimensions, stored_NW.T, strict=True) if pair[0].classes]
    for dimension, stored_N in of_classes:
        wrong = np.flatnonzero((stored_N % 1 != 0) | (stored_N < 0) | (stored_N >= len(dimension.classes)))
        if len(wrong):
            raise ValueError(
                f"{path} of step {wrong[0]} is {stored_N[wrong[0]]:g}, and {dimension.name} has the classes 0 to "
                f"{len(dimension.classes) - 1}: {', '.join(dimension.classes)}"
            )


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
