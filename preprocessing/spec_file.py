"""A `DatasetSpec` in a YAML file, for RLDS and LeRobot datasets that have no file in `preprocessing/openx/`.

`draft` writes one from a dataset's schema. What a schema cannot tell (units, rate, the gripper's sign) is left as "?"
and refused until someone has filled it in.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from preprocessing.conversion.step_marks import STEP_MARKS
from preprocessing.dataset_spec import (
    GROUPS,
    ActionPart,
    Always,
    DatasetSpec,
    Equals,
    FirstActionZero,
    Flag,
    Linear,
    Proprio,
    Terminate,
    Text,
)
from preprocessing.episode_source import EpisodeSource
from preprocessing.lerobot.metadata import BOOKKEEPING, TASK
from preprocessing.rlds import folder_name
from preprocessing.spec_space import columns, draft_space, gripper_of, read_space
from preprocessing.store.json_files import JsonObject
from preprocessing.tfds.features import Feature
from rt_models.spec import MAIN_CAMERA, camera_role

_UNKNOWN = "?"
_REQUIRED = ("name", "cameras", "instruction", "action", "control_hz")
_OPTIONAL = ("gripper", "space", "embedding", "embedding_encoder", "source_actions", "proprio", "flags")
_OPTIONAL += ("ignored_marks", "notes", "optional_cameras")
_SIDE_CAMERAS = ("wrist", "hand", "gripper")
_GRIPPERS = ("absolute", "relative", "none")


def read_spec(path: Path) -> DatasetSpec:
    """The spec in a YAML file. Raises FileNotFoundError, or ValueError naming the file, the field and the remedy."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: make one with rtp preprocess SOURCE OUT --draft-spec {path}")
    try:
        data = yaml.load(path.read_text(), _StrictLoader)
        return _spec(data)
    except (yaml.YAMLError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"dataset spec {path}: {' '.join(str(error).split())}") from None


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error, not the second one's silent victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for place, key in enumerate(keys) if key in keys[:place]]
        if twice:
            raise ValueError(f"{twice[0]!r} is given twice: leave one")
        return super().construct_mapping(node, deep)


def _spec(data: object) -> DatasetSpec:
    fields = _fields(data, "the file", _REQUIRED, _OPTIONAL)
    proprio = tuple(_proprio(value) for value in fields.get("proprio") or ())
    space = read_space(fields.get("space"))
    if space.is_rt1:
        _fields(data, "the file", (*_REQUIRED, "gripper"), _OPTIONAL)
        action = tuple(_part(group, value) for group, value in _fields(fields["action"], "action", (), GROUPS).items())
    else:
        action = columns(_fields(fields["action"], "action", (), None), space, proprio)
    gripper = fields.get("gripper", gripper_of(action))
    if gripper not in _GRIPPERS:
        raise ValueError(f"gripper must be one of {', '.join(_GRIPPERS)}, got {gripper!r}")
    if not isinstance(fields["control_hz"], int | float | str) or isinstance(fields["control_hz"], bool):
        raise ValueError("control_hz must be steps a second, or the path of an episode field with it")
    cameras = _fields(fields["cameras"], "cameras", ("image",), None)
    return DatasetSpec(
        name=folder_name(fields["name"]),
        cameras={str(role): str(path) for role, path in cameras.items()},
        optional_cameras={
            str(role): str(path)
            for role, path in _fields(fields.get("optional_cameras") or {}, "optional_cameras", (), None).items()
        },
        instruction=Text(path=fields["instruction"]),
        embedding=fields.get("embedding"),
        embedding_encoder=fields.get("embedding_encoder"),
        action=action,
        source_actions=tuple(fields.get("source_actions") or dict.fromkeys(part.path for part in action)),
        gripper=gripper,
        control_hz=fields["control_hz"],
        proprio=proprio,
        flags=tuple(_flag(name, value) for name, value in (fields.get("flags") or {}).items()),
        ignored_marks=_marks(fields.get("ignored_marks") or []),
        space=space,
        notes=fields.get("notes") or "",
    )


def _marks(marks: object) -> tuple[str, ...]:
    if not isinstance(marks, list) or not set(map(str, marks)) <= {*STEP_MARKS}:
        raise ValueError(f"ignored_marks must be a list of {', '.join(STEP_MARKS)}, got {marks!r}")
    return tuple(marks)


def _part(group: str, value: object) -> ActionPart:
    if group == "terminate_episode":
        return Terminate(path=_fields(value, f"action.{group}", ("path",), ())["path"])
    fields = _fields(value, f"action.{group}", ("path", "unit"), ("first", "width", "scale", "offset"))
    for key, kind in (("first", int), ("width", int), ("scale", int | float), ("offset", int | float)):
        if not isinstance(fields.get(key, 0), kind) or isinstance(fields.get(key), bool):
            raise ValueError(f"{key} of action.{group} must be a number, got {fields[key]!r}")
    return Linear(group=group, **fields)


def _proprio(value: object) -> Proprio:
    fields = _fields(value, "proprio", ("path", "names", "units"), ())
    for key in ("names", "units"):
        if not isinstance(fields[key], list) or not all(isinstance(word, str) for word in fields[key]):
            raise ValueError(f"{key} of proprio {fields['path']} must be a list of words, got {fields[key]!r}")
    return Proprio(path=fields["path"], names=tuple(fields["names"]), units=tuple(fields["units"]))


def _flag(name: str, value: object) -> Flag:
    """`always`, {path, equals}, or {path, first_zero: number of values}."""
    if value == "always":
        return Always(name=name)
    fields = _fields(value, f"flags.{name}", ("path",), ("equals", "first_zero"))
    if len(fields) != 2:
        raise ValueError(f"flags.{name} must be `always`, or hold a path and one of equals and first_zero")
    if "first_zero" in fields:
        return FirstActionZero(name=name, path=fields["path"], width=int(fields["first_zero"]))
    return Equals(name=name, path=fields["path"], value=float(fields["equals"]))


def _fields(data: object, where: str, required: tuple[str, ...], optional: Collection[str] | None) -> dict[str, Any]:
    """`data` as a mapping with these keys, all of them filled in; `optional` None allows any other key."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be a mapping, got {data!r}")
    for key in required:
        if data.get(key) is None:
            raise ValueError(f"{where} lacks {key}")
    for key, value in data.items():
        if optional is not None and key not in (*required, *optional):
            raise ValueError(f"{where} has an unknown {key!r}: known are {', '.join((*required, *optional))}")
        if value == _UNKNOWN:
            raise ValueError(f"{key} of {where} is still {_UNKNOWN!r}: fill it in")
    return dict(data)


# --- Drafting ---

_HEADER = """\
# Draft of a dataset spec: replace every "?" by what the dataset's documentation says, and check the guesses.
# unit: m, rad, m/s ..., or unitless where it is not known. gripper: absolute (a closedness to hold), relative, or none.
# gripper_closedness_action is +1 to close and -1 to open; for a source with 1 = open, 0 = closed: scale -2, offset 1.
# A LeRobot set records its rate, and names of values at most: world_vector, rotation_delta and where they begin are
# guesses. What it has beside them stands under source_actions and is kept as it is.
# Vectors that the episodes ship: embedding: PATH and embedding_encoder: universal-sentence-encoder-large/5.
"""
_OWN_SPACE = """\
# Groups such as world_vector are those of RT-1's 11-D space. Joints, two arms, a walker have a space of their own in
# place of gripper and action. kind: delta, absolute, velocity or effort. state: the proprio columns that the dimensions
# move, which the audit checks them against; q for joint_0, joint_1, ... means q_0, q_1, ...
"""


def draft(dataset: EpisodeSource) -> str:
    """YAML of a spec guessed from the schema of `dataset`, with "?" for what cannot be guessed.

    Raises ValueError if there is no image, no instruction or no numeric action to guess from.
    """
    steps = {path: dataset.feature(path) for path in dataset.step_paths}
    cameras = [path for path, feature in steps.items() if _is_camera(path, feature)]
    texts = [p for p in (*steps, *dataset.episode_paths) if dataset.feature(p).is_text and _is_instruction(p)]
    action = _guess_action(
        {path: feature for path, feature in steps.items() if re.split("[/.]", path)[0].startswith("action")}
    )
    own_space = _own_space(steps) if "world_vector" not in action else None
    for candidates, what in (
        (cameras, "camera image"),
        (texts, "instruction"),
        (own_space or action, "numeric action"),
    ):
        if not candidates:
            raise ValueError(f"{dataset.folder} has no {what} that a spec could be drafted from")
    main = min(cameras, key=lambda path: (any(word in path for word in _SIDE_CAMERAS), len(path)))
    known_hz = dataset.control_hz
    data = {
        "name": dataset.name,
        "cameras": {"image": main, **_roles([path for path in cameras if path != main])},
        "instruction": min(texts, key=lambda path: ("structured" in path, path != TASK, len(path))),
        "control_hz": _UNKNOWN if known_hz is None else int(known_hz) if known_hz == int(known_hz) else known_hz,
        **(own_space or {"gripper": _UNKNOWN, "action": action}),
        **_kept_verbatim(steps, action),
        "proprio": [_guess_proprio(path, feature) for path, feature in steps.items() if _is_state(path, feature)],
    }
    below = _OWN_SPACE if own_space else _in_own_space(steps)
    return _HEADER + yaml.safe_dump(data, sort_keys=False, width=120) + below


def _roles(paths: Sequence[str]) -> dict[str, str]:
    """Role -> path of the cameras beside the main one: wrist of wrist_image and of eye_in_hand_rgb.

    Where two would be of one role, or one would be the main camera, each is called by the last word of its path, and
    where these do not tell them apart by the whole path, in letters that a role may have.
    """
    words = {path: _letters(_last_word(path)) for path in paths}
    roles = {path: _role(word) for path, word in words.items()}
    for longer in (words, {path: _letters(path) for path in paths}):
        meant = [MAIN_CAMERA, *map(camera_role, roles.values())]
        unclear = [path for path, role in roles.items() if meant.count(camera_role(role)) > 1]
        roles |= {path: longer[path] for path in unclear}
    return {role: path for path, role in roles.items()}


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "_", name.lower())


def _last_word(path: str) -> str:
    """Of a camera's path, without the prefix that all of LeRobot's have."""
    return path.rpartition("/")[2].removeprefix("observation.images.").removeprefix("observation.")


def _role(word: str) -> str:
    """Where a camera is, of a name that also says that it takes pictures."""
    if "wrist" in word.split("_") or "hand" in word.split("_"):
        return "wrist"
    return re.sub(r"_?(image|rgb|cam|camera)_?", "", word) or word


def _is_camera(path: str, feature: Feature) -> bool:
    return feature.is_picture and feature.shape[-1:] == (3,) and "depth" not in path


def _is_instruction(path: str) -> bool:
    last = path.rpartition("/")[2]
    return last == TASK or any(word in last for word in ("instruction", "task_code", "language"))


def _is_numeric(feature: Feature) -> bool:
    return not feature.is_bytes and len(feature.outer) == 1 and None not in feature.shape


def _is_state(path: str, feature: Feature) -> bool:
    return _is_numeric(feature) and len(feature.shape) == 1 and "state" in path.rpartition("/")[2]


def _own_space(steps: Mapping[str, Feature]) -> JsonObject | None:
    """`space` and `action` of a flat action whose values have names, none of which is a position: joints."""
    flat = steps.get("action")
    if flat is None or not flat.names or not _size(flat):
        return None
    return draft_space("action", _size(flat), unknown=_UNKNOWN, names=flat.names)


def _in_own_space(steps: Mapping[str, Feature]) -> str:
    """A comment: the action as a space of its own, where it is a flat vector, which may be joints or two arms."""
    flat = {path: _size(feature) for path, feature in steps.items() if path == "action"}
    if not any(flat.values()):
        return ""
    names = steps["action"].names
    own = draft_space("action", flat["action"], unknown=_UNKNOWN, names=names)
    declared = yaml.safe_dump(own, sort_keys=False, width=116)
    lines = "".join(f"# {line}\n" for line in declared.splitlines())
    return f"{_OWN_SPACE}{lines}"


def _guess_action(fields: Mapping[str, Feature]) -> dict[str, dict[str, str] | dict[str, str | int]]:
    """RT-1's own keys if the dataset has them, else a flat vector read as position, rotation, gripper."""
    named = {path.rpartition("/")[2]: path for path, feature in fields.items() if _is_numeric(feature)}
    guess: dict[str, dict[str, str] | dict[str, str | int]] = {}
    for group in GROUPS:
        if group in named:
            guess[group] = {"path": named[group]} | ({} if group == "terminate_episode" else {"unit": _UNKNOWN})
    if guess:
        return guess
    widest = max(fields, key=lambda path: _size(fields[path]), default="")
    places = _places(fields[widest]) if widest else {}
    return {group: {"path": widest, "first": first, "unit": _UNKNOWN} for group, first in places.items()}


def _places(feature: Feature) -> dict[str, int]:
    """Where a vector's position, rotation and gripper begin: by its values' names, else in the usual order."""
    if not feature.names:
        usual = {"world_vector": (0, 3), "rotation_delta": (3, 6), "gripper_closedness_action": (6, 7)}
        return {group: first for group, (first, stop) in usual.items() if stop <= _size(feature)}
    words = [name.lower().removesuffix(".pos") for name in feature.names]
    places = {}
    for group, pattern in _NAMED.items():
        firsts = [place for place in range(len(words)) if _matches(pattern, words[place:])]
        if len(firsts) == 1:
            places[group] = firsts[0]
    return places


_NAMED = {  # patterns of consecutive names
    "world_vector": tuple(rf"(.*[_ ])?(d|delta_?|pos_?)?{axis}(_m)?" for axis in "xyz"),
    "rotation_delta": tuple(
        rf"(.*[_ ])?((d|delta_?)?({angle}(_rad)?|r_?{axis}|rot_?{axis}))"
        for angle, axis in (("roll", "x"), ("pitch", "y"), ("yaw", "z"))
    ),
    "gripper_closedness_action": (r".*gripper.*",),
}


def _matches(pattern: tuple[str, ...], words: list[str]) -> bool:
    return len(words) >= len(pattern) and all(map(re.fullmatch, pattern, words))


def _kept_verbatim(steps: Mapping[str, Feature], action: Mapping[str, Mapping[str, object]]) -> dict[str, list[str]]:
    """For a LeRobot set, every number of its own but the state, so that `rtp export-lerobot` gives it back."""
    if TASK not in steps:
        return {}
    left_out = {*BOOKKEEPING, "reward", *(path for path, feature in steps.items() if _is_state(path, feature))}
    own = [path for path, feature in steps.items() if _is_numeric(feature) and path not in left_out]
    return {"source_actions": list(dict.fromkeys([*(str(part["path"]) for part in action.values()), *own]))}


def _size(feature: Feature) -> int:
    return feature.shape[0] or 0 if _is_numeric(feature) and len(feature.shape) == 1 else 0


def _guess_proprio(path: str, feature: Feature) -> dict[str, str | list[str]]:
    names = list(feature.names) or [f"{path.rpartition('/')[2]}_{i}" for i in range(_size(feature))]
    return {"path": path, "names": names, "units": ["unknown"] * len(names)}
