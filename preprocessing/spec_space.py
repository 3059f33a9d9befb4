"""The action space of a dataset spec in YAML: a shipped one by name or one written out, and what its dimensions mean.

space: joints-7d    # or {name: my-arm, dimensions: [joint_0, joint_1, gripper], gripper: "1 is open, 0 is closed"}
action:
  joint: {path: action, unit: rad, kind: absolute, state: q}    # a group, or a dimension by its own name
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from preprocessing.action_parts import ActionPart, Columns
from preprocessing.dataset_spec import Proprio
from preprocessing.store.json_files import JsonObject
from rt_models.action_space import KINDS, RT1_SPACE, SPACES, ActionSpace, Kind, SpaceDimension

_SPACE_KEYS = ("name", "dimensions", "gripper")
_PART_KEYS = ("path", "unit", "kind", "state", "frame", "rotation", "neutral", "first", "scale", "offset")
_NEUTRALS = ("none", "mean")


def read_space(value: object) -> ActionSpace:
    """The space that `value` names or writes out; RT-1's where there is none. Raises ValueError."""
    if value is None:
        return RT1_SPACE
    if isinstance(value, str):
        if value not in SPACES:
            raise ValueError(f"space {value!r} does not ship: give one of {', '.join(SPACES)}, or name and dimensions")
        return SPACES[value]
    if not isinstance(value, Mapping) or not isinstance(value.get("dimensions"), list):
        raise ValueError(f"space must be one of {', '.join(SPACES)}, or a mapping with name and dimensions")
    _require_known("space", value, _SPACE_KEYS)
    return ActionSpace(
        name=str(value.get("name", "")),
        dimensions=tuple(_dimension(each) for each in value["dimensions"]),
        gripper=value.get("gripper", "none"),
    )


def _dimension(value: object) -> SpaceDimension:
    """A name, or {name: [its classes]}."""
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, classes),) = value.items()
        if isinstance(classes, list):
            return SpaceDimension(name=str(name), classes=tuple(map(str, classes)))
    if not isinstance(value, str):
        raise ValueError(f"a dimension of space must be a name, or name: [its classes], got {value!r}")
    return SpaceDimension(name=value)


def columns(action: Mapping[str, Any], space: ActionSpace, proprio: Sequence[Proprio]) -> tuple[ActionPart, ...]:
    """The parts of `action`, whose keys are groups or dimensions of `space`. Raises ValueError."""
    groups = space.groups()
    parts = []
    for group, value in action.items():
        if group not in groups and group not in space.names:
            known = ", ".join(dict.fromkeys((*groups, *space.names)))
            raise ValueError(f"action has an unknown {group!r}: in {space.name} there are {known}")
        place = groups[group] if group in groups else slice(space.names.index(group), space.names.index(group) + 1)
        parts.append(_part(group, value, space.dimensions[place], _columns_of(proprio)))
    return tuple(parts)


def _part(group: str, value: object, dimensions: Sequence[SpaceDimension], states: Sequence[str]) -> Columns:
    where, is_class = f"action.{group}", bool(dimensions[0].classes)
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a mapping, got {value!r}")
    _require_known(where, value, _PART_KEYS)
    fields = {"unit": "class", "kind": ""} | dict(value) if is_class else dict(value)
    for key in ("path", "unit", "kind"):
        if fields.get(key) is None:
            raise ValueError(f"{where} lacks {key}")
    for key in fields:
        if fields[key] == "?":
            raise ValueError(f"{key} of {where} is still '?': fill it in")
    for key, types in (("first", int), ("scale", int | float), ("offset", int | float)):
        if not isinstance(fields.get(key, 0), types) or isinstance(fields.get(key), bool):
            raise ValueError(f"{key} of {where} must be a number, got {fields[key]!r}")
    names = tuple(dimension.name for dimension in dimensions)
    return Columns(
        names=names,
        path=str(fields["path"]),
        unit=str(fields["unit"]),
        kind="" if is_class else _kind(where, fields["kind"]),
        state=_states(where, fields.get("state"), names, states),
        frame=str(fields.get("frame", "")),
        rotation=str(fields.get("rotation", "")),
        neutral=_neutral(where, fields.get("neutral", "by kind")),
        first=int(fields.get("first", 0)),
        scale=float(fields.get("scale", 1)),
        offset=float(fields.get("offset", 0)),
    )


def _kind(where: str, value: object) -> Kind:
    for kind in KINDS:
        if value == kind:
            return kind
    raise ValueError(f"kind of {where} must be one of {', '.join(KINDS)}, got {value!r}")


def _neutral(where: str, value: object) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if value not in (*_NEUTRALS, "by kind"):
        raise ValueError(f"neutral of {where} must be a number, {' or '.join(_NEUTRALS)}, got {value!r}")
    return value


def _states(where: str, value: object, names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The proprioceptive columns of the dimensions `names`: a list of them, or the name that they have in common.

    `q` for joint_0, joint_1, ... is q_0, q_1, ...
    """
    if value is None:
        return ()
    if isinstance(value, str) and len(names) > 1:
        value = [f"{value}_{name.rpartition('_')[2]}" for name in names]
    asked = [value] if isinstance(value, str) else value
    if not isinstance(asked, list) or not all(isinstance(each, str) for each in asked):
        raise ValueError(f"state of {where} must be a proprio column, or a list of them, got {value!r}")
    return tuple(_whole_name(where, each, known) for each in asked)


def _whole_name(where: str, asked: str, known: Sequence[str]) -> str:
    fitting = [name for name in known if asked in (name, name.rpartition("/")[2])]
    if len(fitting) != 1:
        what = "several columns" if fitting else "no column"
        raise ValueError(f"state {asked!r} of {where} is {what} of proprio, which has {', '.join(known) or 'none'}")
    return fitting[0]


def _columns_of(proprio: Sequence[Proprio]) -> list[str]:
    """The names that a `DatasetSpec` gives to these columns."""
    return [name for part in proprio for name in part.column_names]


def _require_known(where: str, given: Iterable[object], known: tuple[str, ...]) -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"{where} has an unknown {key!r}: known are {', '.join(known)}")


def gripper_of(action: Sequence[ActionPart]) -> str:
    """What the gripper's number commands, by the kind of its dimension: absolute, relative or none."""
    kinds = [part.kind for part in action if isinstance(part, Columns) and "gripper" in part.group]
    return "none" if not kinds else "absolute" if kinds[0] == "absolute" else "relative"


def draft_space(path: str, size: int, *, unknown: str, names: Sequence[str] = ()) -> JsonObject:
    """`space` and `action` of a draft for a flat action of `size` values: the shipped space of that size that fits its
    `names`, or one to be named, with the source's own names where they can be names of dimensions."""
    shipped = [space for space in SPACES.values() if space.size == size and not space.is_rt1]
    fitting = [space for space in shipped if not names or _are_joints_of(space, names)]
    own = [re.sub(r"\W+", "_", name) for name in names]
    legal = len(set(own)) == size and all(re.fullmatch(r"[A-Za-z]\w*", name) for name in own)
    names = own if legal else [f"action_{number}" for number in range(size)]
    space = fitting[0] if fitting else ActionSpace(name="own", dimensions=tuple(SpaceDimension(name=n) for n in names))
    action = {
        group: {"path": path, "first": place.start, "unit": unknown, "kind": unknown}
        for group, place in space.groups().items()
    }
    gripper = {"gripper": unknown} if any("gripper" in name.lower() for name in names) else {}
    return {"space": space.name if fitting else {"name": unknown, "dimensions": names, **gripper}, "action": action}


def _are_joints_of(space: ActionSpace, names: Sequence[str]) -> bool:
    """Whether values of these names, which are no poses, can be the joints (not velocities) of a shipped space, with
    their grippers at the same places."""
    of_joints = all(re.search("joint|gripper", name) and "velocity" not in name for name in space.names)
    grippers = ["gripper" in name.lower() for name in names]
    return of_joints and (not any(grippers) or grippers == ["gripper" in name for name in space.names])
