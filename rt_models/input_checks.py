"""What RT-1 and RT-2 refuse to compute with, and the sentence that says why.

Shapes and dtypes are always checked. Values (finite, in range) are checked on the CPU, where it costs a thousandth of
the forward pass; on a GPU it would wait for the device, so there only on request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rt_models.batch_fields import EMBEDDING_WIDTH, axes_of, batch_fields
from rt_models.camera_roles import MAIN_CAMERA, frames_key, image_index_key, index_key

_RANGE_SLACK = 1e-3  # bilinear weights may sum to a little more than 1 in float32
_INPUTS = ("step_mask", "embedding", "crop_key", "store", "episode", "step")
LABELS = ("loss_mask", "action", "action_mask")


def require_images(image: Tensor, *, steps: int | str, size: int, channels: int, check_values: bool) -> None:
    """Raise ValueError unless `image` is float (B, steps, size, size, channels) in [0, 1]."""
    expected = _require("image", image, "float", ("B", steps, size, size, channels), " in [0, 1]")
    if check_values and image.numel():
        low, high = (float(bound) for bound in image.aminmax())
        if not (low >= -_RANGE_SLACK and high <= 1 + _RANGE_SLACK):  # written so that NaN fails it
            raise ValueError(f"image: expected {expected}, got {_described(image)} with values {_range(low, high)}")


def require_embeddings(embedding: Tensor, *, leading: tuple[int, ...], check_values: bool) -> None:
    """Raise ValueError unless `embedding` is finite float (*leading, 512)."""
    _require("embedding", embedding, "float", (*leading, EMBEDDING_WIDTH))
    if check_values:
        require_finite("embedding", embedding)


def require_finite(name: str, value: Tensor) -> None:
    """Raise ValueError where a float tensor holds NaN or infinity."""
    if not bool(torch.isfinite(value).all()):
        shape = tuple(value.shape)
        raise ValueError(f"{name}: expected finite float {shape}, got {_described(value)} with NaN or infinity")


def require_frames(frames: Tensor, *, channels: int) -> None:
    """Raise ValueError unless `frames` is uint8 (N, H, W, channels)."""
    _require("frames", frames, "uint8", ("N", "H", "W", channels), " in 0..255")


def require_cameras_axis(image: Tensor, *, num_cameras: int) -> None:
    """Raise ValueError unless images of several cameras have an axis of that many."""
    fits = isinstance(image, Tensor) and image.dim() == (6 if num_cameras > 1 else 5)
    if not fits or (num_cameras > 1 and image.shape[2] != num_cameras):
        shape = f"(B, T, {num_cameras}, H, W, C)" if num_cameras > 1 else "(B, T, H, W, C)"
        raise ValueError(f"image: expected float {shape}, one picture a camera, got {_described(image)}")


def require_state(state: tuple[Tensor, Tensor] | None, *, shape: tuple[int, ...], check_values: bool) -> None:
    """Raise ValueError unless there is a state: finite float of this shape (windows, steps, values), and its mask."""
    if state is None:
        raise ValueError(f"this model reads a state: give float {shape} and its mask, bool {(shape[0], shape[2])}")
    _require("state", state[0], "float", shape)
    _require("state mask", state[1], "bool", (shape[0], shape[2]))
    if check_values:
        require_finite("state", state[0])


def require_step_tokens(tokens: Tensor, *, window: tuple[int, int, int]) -> None:
    """Raise ValueError unless `tokens` is float (B, *window): steps, tokens of a step, width."""
    _require("image tokens", tokens, "float", ("B", *window))


def require_step_mask(step_mask: Tensor, *, shape: tuple[int, int]) -> None:
    """Raise ValueError unless `step_mask` is bool of this shape."""
    _require("step mask", step_mask, "bool", shape)


def require_action_tokens(tokens: Tensor | None, *, shape: tuple[int, ...], bins: int, check_values: bool) -> None:
    """Raise ValueError unless `tokens` is int64 of this shape in 0 .. bins - 1."""
    if tokens is None:
        raise ValueError(f"this model sees previous actions: give the action tokens int64 {shape} of the window")
    expected = _require("action tokens", tokens, "int64", shape, f" in 0..{bins - 1}")
    if check_values and tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < bins:
        raise ValueError(f"action tokens: expected {expected}, got {int(tokens.min())}..{int(tokens.max())}")


def require_batch(
    batch: Mapping[str, Tensor],
    *,
    num_steps: int,
    num_actions: int,
    also: Sequence[str],
    check_values: bool,
    cameras: Sequence[str] = (MAIN_CAMERA,),
    state_size: int = 0,
) -> None:
    """Raise ValueError unless the inputs of `rt_models.spec.batch_fields`, and the keys `also` needed, fit each
    other."""
    sizes: dict[str, int] = {"T": num_steps, "C": 3, "D": EMBEDDING_WIDTH, "A": num_actions, "P": state_size}
    fields = batch_fields(cameras, state=state_size > 0)
    also = (*also, "state", "state_mask") if state_size else also
    of_cameras = [key for role in cameras for key in (frames_key(role), index_key(role))]
    for key in (*of_cameras, *_INPUTS, *also):
        field = fields[key]
        if key not in batch:
            raise ValueError(f"batch: {key!r} is missing ({field.meaning}); rt_models.spec.BATCH lists its keys")
        dtype = "float" if field.dtype == "float32" else field.dtype
        axes = axes_of(key, field, cameras)
        shape = tuple(sizes.get(axis, axis.partition("_")[0]) for axis in axes)
        _require(f"batch[{key!r}]", batch[key], dtype, shape)
        sizes |= dict(zip(axes, batch[key].shape, strict=True))
    if check_values:
        for role in cameras:
            _require_index(batch, role)
        _require_values(batch, also)


def _require_index(batch: Mapping[str, Tensor], role: str) -> None:
    """Of the main camera every real step has a frame; of another one a dataset may have none."""
    rows, real, key = len(batch[frames_key(role)]), batch["step_mask"], index_key(role)
    index = batch[key]
    wrong = (index < 0) == real if role == MAIN_CAMERA else (index >= 0) & ~real
    if wrong.any() or (index >= rows).any() or (index < -1).any():
        where = "where step_mask is True and -1 elsewhere"
        raise ValueError(
            f"batch[{key!r}]: expected a row of the {rows} {frames_key(role)} {where}, got "
            f"{int(index.min())}..{int(index.max())}"
        )


def _require_values(batch: Mapping[str, Tensor], also: Sequence[str]) -> None:
    if "loss_mask" in also and (batch["loss_mask"] & ~batch["step_mask"]).any():
        raise ValueError("batch['loss_mask'] is True on padding: only steps where step_mask is True can be trained on")
    for key in {"embedding", "action", "state"} & {"embedding", *also}:
        require_finite(f"batch[{key!r}]", batch[key])


def require_rows(
    batch: Mapping[str, Tensor], *, max_tokens: int, vocab_size: int, cameras: Sequence[str] = (MAIN_CAMERA,)
) -> None:
    """Raise ValueError unless frames, image places and tokens of an RT-2 batch fit each other and the model."""
    of_cameras = [key for role in cameras for key in (frames_key(role), image_index_key(role))]
    missing = [key for key in (*of_cameras, "tokens", "token_mask") if key not in batch]
    if missing:
        raise ValueError(f"batch: {missing[0]!r} is missing; rt_models.spec.RT2_BATCH lists the keys")
    tokens = batch["tokens"]
    for role in cameras:
        _require(f"batch[{frames_key(role)!r}]", batch[frames_key(role)], "uint8", ("F", "H", "W", 3), " RGB in 0..255")
        first = batch[image_index_key(cameras[0])]
        shape = ("B", "I") if role == cameras[0] else tuple(first.shape)
        _require(f"batch[{image_index_key(role)!r}]", batch[image_index_key(role)], "int64", shape)
    frames = batch[frames_key(cameras[0])]
    _require("batch['tokens']", tokens, "int64", (len(batch[image_index_key(cameras[0])]), "L"))
    if tokens.shape[1] > max_tokens:
        raise ValueError(f"batch['tokens']: rows of {tokens.shape[1]} tokens, the context holds {max_tokens}")
    _require("batch['token_mask']", batch["token_mask"], "bool", tuple(tokens.shape))
    if not tokens.numel() or 0 in frames.shape[1:]:
        raise ValueError(f"batch: needs a row, a token and a pixel, got {_described(tokens)} and {_described(frames)}")
    if tokens.device.type == "cpu":
        _require_row_values(batch, vocab_size)
        for role in cameras:
            _require_picture_index(batch, role)


def require_answers(batch: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless a batch that `require_rows` has passed says which of its tokens are targets."""
    if "answer_mask" not in batch:
        raise ValueError("batch: 'answer_mask' is missing, and a loss needs it; rt_models.spec.RT2_BATCH lists it")
    answer, real = batch["answer_mask"], batch["token_mask"]
    _require("batch['answer_mask']", answer, "bool", tuple(real.shape))
    if answer.device.type == "cpu" and (answer & ~real).any():
        raise ValueError("batch['answer_mask'] is True on padding: only tokens where token_mask is True can be targets")
    if "prompt_length" not in batch:
        return
    prompt_B = batch["prompt_length"]
    _require("batch['prompt_length']", prompt_B, "int64", (len(real),))
    if answer.device.type == "cpu":
        places = torch.arange(real.shape[1])
        if (prompt_B < 1).any() or (answer & (places < prompt_B[:, None])).any():
            raise ValueError("batch['prompt_length']: a prompt has at least a token, and no target stands in it")


def _require_row_values(batch: Mapping[str, Tensor], vocab_size: int) -> None:
    tokens, real = batch["tokens"], batch["token_mask"]
    low, high = (int(bound) for bound in tokens.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"batch['tokens']: ids {low} to {high}, the model's vocabulary has {vocab_size}")
    if not real[:, 0].all() or (real[:, 1:] & ~real[:, :-1]).any():
        raise ValueError("batch['token_mask']: a row begins with a real token, and its padding stands at the right")


def _require_picture_index(batch: Mapping[str, Tensor], role: str) -> None:
    index, frames = batch[image_index_key(role)], len(batch[frames_key(role)])
    if index.numel() and not -1 <= int(index.min()) <= int(index.max()) < frames:
        low, high = int(index.min()), int(index.max())
        key = image_index_key(role)
        raise ValueError(f"batch[{key!r}]: expected rows of the {frames} frames, or -1, got {low} to {high}")


def _require(name: str, value: Tensor, dtype: str, shape: tuple[int | str, ...], bounds: str = "") -> str:
    """What was expected, if `value` is that: `dtype` ("float": any floating one) and `shape` (a letter: any length)."""
    expected = f"{dtype} ({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''}){bounds}"
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name}: expected a torch tensor, {expected}, got {type(value).__module__}.{type(value).__name__}"
        )
    kind = value.is_floating_point() if dtype == "float" else str(value.dtype) == f"torch.{dtype}"
    fits = value.dim() == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, value.shape, strict=True)
    )
    if not (kind and fits):
        raise ValueError(f"{name}: expected {expected}, got {_described(value)}")
    return expected


def _described(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _range(low: float, high: float) -> str:
    return "that are NaN" if low != low else f"in [{low:.4g}, {high:.4g}]"
