"""Fields of an observation as robots' clients name them: the camera's picture, the instruction, marks of an episode.

openpi's keys contain slashes and are flat; those of vla-eval and ALOHA hold a map of cameras.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from pipelines.publishing.objects_meant import ObjectsMeant
from pipelines.publishing.robot_declaration import DECLARATIONS
from pipelines.serving.codecs.mlflow_rows import rate_of, robot_name
from pipelines.serving.question import Question
from pipelines.serving.refusal import Refusal
from pipelines.serving.request_values import flag
from rt_models.spec import CAMERA_ALIASES, MAIN_CAMERA

Observation = Mapping[str, object]

CAMERA_KEYS = (
    "image_{}",
    "{}_image",
    "observation/{}_image",
    "observation/{}_image_left",
    "images.{}",
    "images.cam_{}",
    "observation.images.{}",
)
"""Where the picture of a camera beside the main one may lie, {} being its role or an alias of it."""
STATE_KEYS = ("state", "observation/state", "observation.state")


def question(observation: Observation, *, image_keys: Sequence[str], text_keys: Sequence[str]) -> Question:
    """What an observation asks. Raises Refusal, naming the field, as its `camera` does where the main one is not there.

    The picture is the first of `image_keys` that is there, the instruction the first of `text_keys`; NAME.CAMERA is the
    camera of a map, NAME.* the only one of it. Other cameras lie under their role, as `CAMERA_KEYS` say, and a state
    under one of `STATE_KEYS`. `control_hz` and `DECLARATIONS` are what a robot says of itself. `reset`, `stateless`,
    `success`, `embedding`, `dataset`, `contract`, `explain` and the objects meant (`OBJECT_FIELDS`) are fields of our
    own, which clients of others do not send.
    """
    return Question(
        camera=partial(_camera, observation, image_keys),
        state=next((observation[key] for key in STATE_KEYS if observation.get(key) is not None), None),
        control_hz=rate_of(observation.get("control_hz")),
        declared={name: observation[name] for name in DECLARATIONS if observation.get(name) is not None},
        instruction=_text(observation, text_keys),
        embedding=observation.get("embedding"),
        objects=ObjectsMeant.of(observation.get),
        reset=_flag(observation, "reset"),
        stateless=_flag(observation, "stateless"),
        success=None if observation.get("success") is None else _flag(observation, "success"),
        dataset=_name(observation, "dataset"),
        contract=_name(observation, "contract"),
        explain=_flag(observation, "explain"),
    )


def _camera(observation: Observation, image_keys: Sequence[str], role: str, others: Sequence[str]) -> object:
    if role == MAIN_CAMERA:
        return _frame(observation, image_keys, [key for other in others for key in _keys_of(other)])
    for key in _keys_of(role):
        picture = _at(observation, key)
        if picture is not None:
            return _pixels(picture, key)
    return None


def _keys_of(role: str) -> list[str]:
    """Where the picture of a camera beside the main one may lie."""
    names = [role, *(name for name, stands_for in CAMERA_ALIASES.items() if stands_for == role)]
    return [pattern.format(name) for name in names for pattern in CAMERA_KEYS]


def robot_of(observation: Observation) -> str | None:
    return robot_name(observation.get("robot"))


def _frame(observation: Observation, keys: Sequence[str], taken: Sequence[str]) -> object:
    """`taken` are the keys of other cameras that the policy reads."""
    for key in keys:
        picture = _at(observation, key, taken)
        if picture is not None:
            return _pixels(picture, key)
    there = ", ".join(sorted(f"{name:.60}" for name in _names(observation))[:12]) or "nothing"
    raise Refusal(f"there is no camera frame: send one as {' or '.join(keys[:3])} (there is {there})", field=keys[0])


def _names(observation: Observation) -> Iterator[str]:
    """The fields, and of a map of cameras each camera, as an adapter's `image_keys` name it."""
    for name, value in observation.items():
        if isinstance(value, dict) and value:
            yield from (f"{name}.{camera}" for camera in value)
        else:
            yield name


def _at(observation: Observation, key: str, taken: Sequence[str] = ()) -> object:
    if key in observation:
        return None if isinstance(observation[key], dict) else observation[key]
    outer, _, inner = key.rpartition(".")
    flat = [name for name in observation if name.startswith(f"{outer}.")] if inner == "*" else []
    if len(flat) == 1:  # LeRobot's names
        return None if flat[0] in taken else observation[flat[0]]
    cameras = observation.get(outer)
    if not outer or not isinstance(cameras, dict):
        return None
    if inner == "*":
        only = next(iter(cameras)) if len(cameras) == 1 else None
        return None if only is None or f"{outer}.{only}" in taken else cameras[only]
    return cameras.get(inner)


def _pixels(value: object, key: str) -> object:
    """Also channels first, and floats of 0 to 1: openpi's server takes both."""
    if not isinstance(value, np.ndarray):
        return value
    if value.ndim == 3 and value.shape[0] == 3 and value.shape[-1] != 3:
        value = value.transpose(1, 2, 0)
    if value.dtype.kind == "f":
        if value.size and not (np.isfinite(value).all() and value.min() >= 0 and value.max() <= 1):
            raise Refusal(f"{key} has floats that are not within 0 and 1: send uint8", field=key)
        return (value * 255).astype(np.uint8)
    return np.ascontiguousarray(value)


def _text(observation: Observation, keys: Sequence[str]) -> str | None:
    for key in keys:
        value = observation.get(key)
        if isinstance(value, str):
            return value
        if value is not None:
            raise Refusal(f"{key} must be text, got {type(value).__name__}", field=key)
    if observation.get("embedding") is None:
        raise Refusal(f"there is no instruction: send a text as {keys[0]}", field=keys[0])
    return None


def _flag(observation: Observation, name: str) -> bool:
    try:
        return flag(name, observation.get(name))
    except ValueError as error:
        raise Refusal(str(error), field=name) from None


def _name(observation: Observation, name: str) -> str | None:
    value = observation.get(name)
    if value is not None and not isinstance(value, str):
        raise Refusal(f"{name} must be text, got {type(value).__name__}", field=name)
    return value or None
