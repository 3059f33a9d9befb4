"""Declared maps from a dataset's own action space into a common one, in which different robots train together.

A map is affine in each dimension and so has an inverse: actions return in the robot's own space. It is written line by
line (or with ; between), COMMON = SCALE * OWN + OFFSET, for a dimension or a whole group:

    world_vector = position_delta
    gripper_closedness_action = -2 * gripper_open + 1

`held(OWN)` is the one transform that needs the episode: the last direction that a relative gripper was commanded in.
Its inverse commands that direction, again and again, which a relative gripper takes as the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rt_models.action_space import ActionSpace, ActionSpec, DimensionMeaning

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_LINE = re.compile(
    rf"(?P<common>\w+)\s*=\s*(?:(?P<scale>{_NUMBER})\s*\*\s*|(?P<minus>-)\s*)?"
    rf"(?:held\(\s*(?P<held>\w+)\s*\)|(?P<own>[A-Za-z]\w*))\s*(?:(?P<sign>[-+])\s*(?P<offset>{_NUMBER}))?"
)
_POSES = ("world_vector", "position_delta", "rotation_delta", "base_displacement")
_LENGTHS, _ANGLES = ("m", "cm", "mm"), ("rad", "deg")
_UNSAID = ("unitless", "unknown", "scaled")  # units that say nothing
_CLOSED_AND_OPEN: dict[str, tuple[float, float]] = {  # by convention, the gripper's number closed and open
    "+1 closes, -1 opens": (1, -1),
    "1 is open, 0 is closed": (0, 1),
    "1 is closed, 0 is open": (1, 0),
}


@dataclass(frozen=True, kw_only=True)
class MappedDimension:
    """common = own * scale + offset, in physical values; `held`: of what a relative gripper was last commanded."""

    common: str
    own: str
    scale: float = 1.0
    offset: float = 0.0
    held: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and math.isfinite(self.offset) and self.scale):
            raise ValueError(
                f"{self.common} = {self.scale:g} * {self.own} + {self.offset:g} has no inverse: the scale must not be 0"
            )


SpaceMap = tuple[MappedDimension, ...]


def read_map(text: str, own: ActionSpec, common: ActionSpace) -> SpaceMap:
    """The map that `text` declares from `own` to `common`. ValueError for what is not affine or has no inverse."""
    lines = [line.strip() for line in re.split(r"[;\n]", text) if line.strip()]
    mapped = tuple(each for line in lines for each in _dimensions(line, own.space(), common))
    for what, names in (("common", [each.common for each in mapped]), ("own", [each.own for each in mapped])):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the map uses the {what} dimension {twice[0]} twice, and so has no inverse")
    if not mapped:
        raise ValueError("the map is empty: declare COMMON = OWN, one a line")
    return mapped


def _dimensions(line: str, own: ActionSpace, common: ActionSpace) -> SpaceMap:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(
            f"{line!r} is no affine map: write COMMON = SCALE * OWN + OFFSET, with numbers for scale and offset"
        )
    targets = _named(match["common"], common)
    sources = _named(match["own"] or match["held"], own)
    if len(targets) != len(sources):
        raise ValueError(f"{line!r} maps {len(sources)} dimensions onto {len(targets)}")
    axes, their_axes = ([name.rpartition("_")[2] for name in names] for names in (sources, targets))
    if axes != their_axes and sorted(axes) == sorted(their_axes):
        raise ValueError(
            f"{line!r} would map {', '.join(sources)} onto {', '.join(targets)}: their order differs, map each by its "
            f"own name"
        )
    scale = float(match["scale"] or 1) * (-1 if match["minus"] else 1)
    offset = float(f"{match['sign']}{match['offset']}") if match["sign"] else 0.0
    return tuple(
        MappedDimension(common=target, own=source, scale=scale, offset=offset, held=match["held"] is not None)
        for target, source in zip(targets, sources, strict=True)
    )


def _named(name: str, space: ActionSpace) -> tuple[str, ...]:
    """The dimension, or those of the group, of this name."""
    if name in space.names:
        return (name,)
    groups = space.groups()
    if name not in groups:
        known = ", ".join(dict.fromkeys((*groups, *space.names)))
        raise ValueError(f"{name!r} is no dimension of {space.name}: there are {known}")
    return space.names[groups[name]]


# --- Whether a map means something ---


def require_meaningful(
    mapped: SpaceMap, own: ActionSpec, meanings: Sequence[DimensionMeaning], common: ActionSpace
) -> None:
    """Raise ValueError where no affine map can turn the one into the other: joints into poses, one rotation convention
    into another, a place into a motion, lengths into angles, one set of classes into another."""
    units = {dimension.name: dimension.unit for dimension in common.spec().dimensions}
    said = dict(zip(own.names, meanings, strict=True)) if meanings else {}
    for each in mapped:
        source, target = own.dimensions[own.names.index(each.own)], common.dimensions[common.names.index(each.common)]
        meaning = said.get(each.own, DimensionMeaning())
        why = _obstacle(each, source.unit, meaning, units[each.common])
        why = why or _gripper_obstacle(each, own.gripper, meaning, common.gripper)
        if source.class_names != target.classes or (target.classes and (each.scale, each.offset) != (1.0, 0.0)):
            why = "classes are no numbers to scale: only the same classes map onto each other, as they are"
        if each.held and own.gripper != "+1 closes, -1 opens":
            why = f"held() is of a gripper that +1 closes and -1 opens, and that of {own.name} is: {own.gripper}"
        if why:
            raise ValueError(f"{each.own} cannot be mapped onto {each.common}: {why}")


def _obstacle(each: MappedDimension, unit: str, meaning: DimensionMeaning, common_unit: str) -> str:
    own_is_pose, common_is_pose = (name.startswith(_POSES) for name in (each.own, each.common))
    own_is_joint, common_is_joint = ("joint" in name for name in (each.own, each.common))
    if (own_is_joint and common_is_pose) or (own_is_pose and common_is_joint):
        return "between joints and poses lies the arm's kinematics, which is no affine map"
    if common_is_pose and meaning.kind not in ("", "delta"):
        return f"it is declared {meaning.kind}, and a motion a step is wanted: that takes the state, no affine map"
    if "velocity" in each.common and meaning.kind not in ("", "velocity"):
        return f"it is declared {meaning.kind}, and a velocity is wanted: that takes the state and the rate"
    if each.common.startswith("rotation_delta") and not is_euler(meaning.rotation):
        return f"its rotation is {meaning.rotation}, and no affine map makes roll, pitch and yaw of that"
    for mine, other in ((_LENGTHS, _ANGLES), (_ANGLES, _LENGTHS)):
        if unit in mine and common_unit in other:
            return f"{unit} are no {common_unit}"
    if common_unit in (*_LENGTHS, *_ANGLES) and unit not in (common_unit, *_UNSAID) and abs(each.scale) == 1:
        return f"its unit is {unit} and {common_unit} is wanted: give the factor between them"
    return ""


def _gripper_obstacle(each: MappedDimension, own: str, meaning: DimensionMeaning, common: str) -> str:
    """A place must come to the same place, open and closed; of a change or of what is not declared the sign counts."""
    is_gripper = "gripper" in each.own and "gripper" in each.common
    if not is_gripper or own not in _CLOSED_AND_OPEN or common not in _CLOSED_AND_OPEN:
        return ""
    (closed, opened), (their_closed, their_opened) = _CLOSED_AND_OPEN[own], _CLOSED_AND_OPEN[common]
    scale = (their_closed - their_opened) / (closed - opened)
    offset = their_closed - scale * closed
    is_place = each.held or meaning.kind == "absolute"
    same_place = math.isclose(each.scale, scale) and math.isclose(each.offset, offset, abs_tol=1e-9)
    if each.scale * scale > 0 and (same_place or not is_place):
        return ""
    return f"there {common}, here {own}: that is {scale:g} * {each.own} {offset:+g}"


def is_euler(rotation: str) -> bool:
    """Whether a declared convention is roll, pitch and yaw; what is not declared is taken to be."""
    return not rotation or any(word in rotation.lower() for word in ("euler", "rpy", "roll"))


# --- Values ---


@dataclass(frozen=True, kw_only=True, eq=False)
class MapArrays:
    """A map as arrays: common[:, common_M] = own[:, own_M] * scale_M + offset_M."""

    own_M: np.ndarray
    common_M: np.ndarray
    scale_M: np.ndarray
    offset_M: np.ndarray

    @staticmethod
    def of(mapped: SpaceMap, own: Sequence[str], common: Sequence[str]) -> MapArrays:
        return MapArrays(
            own_M=np.array([own.index(each.own) for each in mapped]),
            common_M=np.array([common.index(each.common) for each in mapped]),
            scale_M=np.array([each.scale for each in mapped]),
            offset_M=np.array([each.offset for each in mapped]),
        )

    def forward(self, own_xO: np.ndarray, nothing_A: np.ndarray) -> np.ndarray:
        """float64 (..., A) common values of own ones (..., O); `nothing_A` where the map says nothing."""
        common_xA = np.broadcast_to(nothing_A, (*own_xO.shape[:-1], len(nothing_A))).astype(np.float64)
        common_xA[..., self.common_M] = own_xO[..., self.own_M].astype(np.float64) * self.scale_M + self.offset_M
        return common_xA

    def back(self, common_xA: np.ndarray, nothing_O: np.ndarray) -> np.ndarray:
        """float32 (..., O) own values of common ones (..., A); `nothing_O` where the map says nothing."""
        own_xO = np.broadcast_to(nothing_O, (*common_xA.shape[:-1], len(nothing_O))).astype(np.float64)
        own_xO[..., self.own_M] = (common_xA[..., self.common_M].astype(np.float64) - self.offset_M) / self.scale_M
        return own_xO.astype(np.float32)

    def mask_back(self, common_A: np.ndarray, size: int) -> np.ndarray:
        """bool (O,): own dimensions whose common one is True."""
        own_O = np.zeros(size, bool)
        own_O[self.own_M] = common_A[self.common_M]
        return own_O
