"""The batches that the loader hands out, one table for each kind: windows of robots' steps, and RT-2's rows.

The tables are functions of the cameras that a model reads, by role, and of whether it reads a state. NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rt_models.camera_roles import MAIN_CAMERA, frames_key, image_index_key, index_key, of_role

EMBEDDING_WIDTH = 512  # Universal Sentence Encoder


@dataclass(frozen=True, kw_only=True)
class BatchField:
    """One key of a batch. Axes: B windows or rows, T steps, M cameras, I image places, L tokens, F frames, N distinct
    images, HW pixels, C colours, A actions, P values of the state, D embedding, S a single number.

    F, H, W and N are each camera's own.
    """

    dtype: str
    axes: str
    meaning: str
    optional: bool = False


_FRAMES = BatchField(dtype="uint8", axes="FHWC", meaning="distinct RGB frames, 0..255, at the store's size")
_FRAME_INDEX = BatchField(dtype="int64", axes="BT", meaning="row of `frames` for each step; -1: padding, no frame")

_WINDOW_FIELDS: dict[str, BatchField] = {
    "step_mask": BatchField(dtype="bool", axes="BT", meaning="True: a real step; False: padding before the episode"),
    "loss_mask": BatchField(dtype="bool", axes="BT", meaning="True: trained on (real and not terminal)"),
    "embedding": BatchField(dtype="float32", axes="BTD", meaning="instruction embedding; zeros on padding"),
    "action": BatchField(dtype="float32", axes="BTA", meaning="model values (after the transform); zeros on padding"),
    "action_mask": BatchField(dtype="bool", axes="BA", meaning="True: the dimension exists in the window's dataset"),
    "sample_id": BatchField(dtype="int64", axes="B", meaning="place in the global sample order"),
    "crop_key": BatchField(dtype="int64", axes="B", meaning="keys random crops; equal for windows of one segment"),
    "store": BatchField(dtype="int64", axes="B", meaning="number of the store in the mixture"),
    "episode": BatchField(dtype="int64", axes="B", meaning="number of the episode in its store"),
    "step": BatchField(dtype="int64", axes="B", meaning="step, from 0, at which the window ends"),
    "object_mask": BatchField(
        dtype="uint8",
        axes="FHW",
        meaning="marks the objects meant in `frames`, 0..255 (MOO); stores hold none, a reader of one's own adds it",
        optional=True,
    ),
}
_STATE_FIELDS: dict[str, BatchField] = {
    "state": BatchField(
        dtype="float32", axes="BTP", meaning="normalised state; zeros on padding and in absent dimensions"
    ),
    "state_mask": BatchField(dtype="bool", axes="BP", meaning="True: the window's dataset has the dimension"),
}
_PLAN_FIELDS: dict[str, BatchField] = {
    "image_frame": BatchField(dtype="int64", axes="N", meaning="row of `frames` of each image", optional=True),
    "image_step": BatchField(dtype="int64", axes="N", meaning="a step that shows it, counted over B, T", optional=True),
    "image_place": BatchField(dtype="int64", axes="BT", meaning="image of each step; -1: padding", optional=True),
    "num_images": BatchField(dtype="int32", axes="S", meaning="how many of N are real, the first", optional=True),
}


def batch_fields(
    cameras: Sequence[str] = (MAIN_CAMERA,), *, state: bool = False, together: bool = True
) -> dict[str, BatchField]:
    """The keys of a batch of windows for a model that reads these cameras, by role, and a state or none.

    What images a batch has (`rt_models/vision/image_plan.py`) may stand in it: of all cameras `together`, where a step
    has a place for each (B, T, M) and `image_step` counts over those; else of each camera under keys of its own.
    """
    fields: dict[str, BatchField] = {}
    for role in cameras:
        its = frames_key(role)
        fields[its] = _FRAMES
        meaning = f"row of `{its}` for each step; -1: padding, or the dataset has no such camera"
        fields[index_key(role)] = _FRAME_INDEX if role == MAIN_CAMERA else replace(_FRAME_INDEX, meaning=meaning)
    fields |= _WINDOW_FIELDS | (_STATE_FIELDS if state else {})
    if together and len(cameras) > 1:
        return fields | _PLAN_FIELDS | {"image_place": replace(_PLAN_FIELDS["image_place"], axes="BTM")}
    return fields | {of_role(key, role): field for role in cameras for key, field in _PLAN_FIELDS.items()}


BATCH: dict[str, BatchField] = batch_fields()
"""Of a model that reads the main camera alone."""


_ROW_FRAMES = BatchField(dtype="uint8", axes="FHWC", meaning="distinct RGB pictures of one size, 0..255")
_ROW_FIELDS: dict[str, BatchField] = {
    "tokens": BatchField(dtype="int64", axes="BL", meaning="prompt, answer, end token; padded at the right"),
    "token_mask": BatchField(dtype="bool", axes="BL", meaning="True: a real token"),
    "answer_mask": BatchField(
        dtype="bool", axes="BL", meaning="True: a target of the loss, predicted from the place before it"
    ),
    "prompt_length": BatchField(dtype="int64", axes="B", meaning="tokens before the answer"),
    "is_robot": BatchField(dtype="bool", axes="B", meaning="True: a robot step; False: an image-text example"),
    "action": BatchField(dtype="float32", axes="BA", meaning="model values; zeros for an image-text example"),
    "action_mask": BatchField(dtype="bool", axes="BA", meaning="True: the dimension exists in the row's dataset"),
    "sample_id": BatchField(dtype="int64", axes="B", meaning="place in the global sample order"),
    "crop_key": BatchField(dtype="int64", axes="B", meaning="keys random crops of a robot's frames"),
    "store": BatchField(dtype="int64", axes="B", meaning="number of the store in the mixture"),
    "episode": BatchField(dtype="int64", axes="B", meaning="number of the episode in its store; -1: no robot step"),
    "step": BatchField(dtype="int64", axes="B", meaning="step of the episode, from 0; -1: no robot step"),
    "num_images": BatchField(dtype="int32", axes="S", meaning="how many of F are real, the first", optional=True),
    "answer_place": BatchField(
        dtype="int64", axes="BR", meaning="places of a row's targets, in order, then -1", optional=True
    ),
}


def rt2_batch_fields(cameras: Sequence[str] = (MAIN_CAMERA,)) -> dict[str, BatchField]:
    """The keys of RT-2's batch for a model that reads these cameras, by role; I places for each.

    Pictures of the web stand among those of the first camera. A state is part of the tokens.
    """
    fields: dict[str, BatchField] = {}
    for role in cameras:
        fields[frames_key(role)] = _ROW_FRAMES
        meaning = f"row of `{frames_key(role)}` at each image place; -1: none"
        fields[image_index_key(role)] = BatchField(dtype="int64", axes="BI", meaning=meaning)
    return fields | _ROW_FIELDS


RT2_BATCH: dict[str, BatchField] = rt2_batch_fields()
"""Of a model that reads the main camera alone."""


def check_batch(
    batch: Mapping[str, Any],
    *,
    action_size: int,
    cameras: Sequence[str] = (MAIN_CAMERA,),
    state_size: int = 0,
    together: bool = True,
) -> None:
    """Raise ValueError unless `batch` (arrays or tensors) satisfies `batch_fields`; tests call it at the loader's
    exit."""
    fields = batch_fields(cameras, state=state_size > 0, together=together)
    _check_fields(batch, fields, {"A": action_size, "P": state_size, "M": len(cameras)}, cameras)
    real = np.asarray(batch["step_mask"])
    for role in cameras:
        key = index_key(role)
        index, there = np.asarray(batch[key]), real
        if role != MAIN_CAMERA:  # a dataset has the camera at all of its steps or at none
            there = real & (index >= 0).any(axis=1, keepdims=True)
        if (index[there] < 0).any() or (index >= len(batch[frames_key(role)])).any() or (index[~there] != -1).any():
            raise ValueError(f"batch[{key!r}] must be a row of {frames_key(role)} on real steps and -1 on padding")
    if np.asarray(batch["loss_mask"])[~real].any():
        raise ValueError("batch['loss_mask'] is True on padding")
    if state_size:
        there = real[..., None] & np.asarray(batch["state_mask"])[:, None, :]
        if np.asarray(batch["state"])[~there].any():
            raise ValueError("batch['state'] is not 0 on padding or in an absent dimension")


def check_rt2_batch(batch: Mapping[str, Any], *, action_size: int, cameras: Sequence[str] = (MAIN_CAMERA,)) -> None:
    """Raise ValueError unless `batch` (arrays or tensors) satisfies `rt2_batch_fields`; tests call it at the loader's
    exit."""
    _check_fields(batch, rt2_batch_fields(cameras), {"A": action_size}, cameras)
    real, is_robot = np.asarray(batch["token_mask"]), np.asarray(batch["is_robot"])
    for role in cameras:
        index = np.asarray(batch[image_index_key(role)])
        if (index < -1).any() or (index >= len(batch[frames_key(role)])).any():
            raise ValueError(f"batch[{image_index_key(role)!r}] must be a row of {frames_key(role)} or -1")
    if not real[:, 0].all() or (real[:, 1:] & ~real[:, :-1]).any():
        raise ValueError("batch['token_mask']: a row begins with a real token, and its padding stands at the right")
    prompt_BL = np.arange(real.shape[1]) < np.asarray(batch["prompt_length"])[:, None]
    if (np.asarray(batch["answer_mask"]) & (prompt_BL | ~real)).any():
        raise ValueError("batch['answer_mask'] is True on padding or in a prompt")
    for key in ("episode", "step"):
        if ((np.asarray(batch[key]) >= 0) != is_robot).any():
            raise ValueError(f"batch[{key!r}] must be 0 or more for a robot step and -1 elsewhere")


def _check_fields(
    batch: Mapping[str, Any], table: Mapping[str, BatchField], known: Mapping[str, int], cameras: Sequence[str]
) -> None:
    """Raise ValueError unless keys, dtypes and axes are those of `table`, and floats are finite. `known`: lengths of
    axes."""
    needed = {key for key, field in table.items() if not field.optional}
    missing, extra = sorted(needed - set(batch)), sorted(set(batch) - set(table))
    if missing or extra:
        raise ValueError(f"batch keys: missing {missing}, extra {extra}")
    sizes: dict[str, int] = {"C": 3, "D": EMBEDDING_WIDTH, "S": 1, **known}
    for key, field in ((key, table[key]) for key in table if key in batch):
        dtype, shape = str(batch[key].dtype).removeprefix("torch."), tuple(batch[key].shape)
        if dtype != field.dtype or len(shape) != len(field.axes):
            raise ValueError(f"batch[{key!r}] is {dtype} {shape}, expected {field.dtype} with axes {field.axes}")
        for axis, length in zip(axes_of(key, field, cameras), shape, strict=True):
            if sizes.setdefault(axis, length) != length:
                raise ValueError(f"batch[{key!r}] has axis {axis} = {length}, elsewhere it is {sizes[axis]}")
        if dtype == "float32" and not np.isfinite(np.asarray(batch[key])).all():
            raise ValueError(f"batch[{key!r}] holds values that are not finite")


def axes_of(key: str, field: BatchField, cameras: Sequence[str]) -> list[str]:
    """The field's axes, those that each camera has of its own with the camera's role: "F_wrist"."""
    keys = ("frames", "frame_index", "image_index", *_PLAN_FIELDS)
    role = next((role for role in cameras if key in [of_role(name, role) for name in keys]), MAIN_CAMERA)
    return [of_role(axis, role) if axis in "FHWN" else axis for axis in field.axes]
