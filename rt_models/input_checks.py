"""What RT-1 and RT-2 refuse to compute with, and the sentence that says why.

Shapes and dtypes are always checked. Values (finite, in range) are checked on the CPU, where it costs a thousandth of
the forward pass; on a GPU it would wait for the device, so there only on request.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rt_models.spec import EMBEDDING_WIDTH

_RANGE_SLACK = 1e-3  # bilinear weights may sum to a little more than 1 in float32
_BATCH_KEYS = ("frames", "frame_index", "step_mask", "embedding", "crop_key", "store", "episode", "step")


def require_images(image: Tensor, *, size: int, channels: int, check_values: bool) -> None:
    """Raise ValueError unless `image` is float (B, T, size, size, channels) in [0, 1]."""
    expected = f"float (B, T, {size}, {size}, {channels}) in [0, 1]"
    if not image.is_floating_point() or image.dim() != 5 or tuple(image.shape[2:]) != (size, size, channels):
        raise ValueError(f"image: expected {expected}, got {_described(image)}")
    if check_values and image.numel():
        low, high = (float(bound) for bound in image.aminmax())
        if not (low >= -_RANGE_SLACK and high <= 1 + _RANGE_SLACK):  # written so that NaN fails it
            raise ValueError(f"image: expected {expected}, got {_described(image)} with values {_range(low, high)}")


def require_embeddings(embedding: Tensor, *, leading: tuple[int, ...], check_values: bool) -> None:
    """Raise ValueError unless `embedding` is finite float (*leading, 512)."""
    shape = (*leading, EMBEDDING_WIDTH)
    if not embedding.is_floating_point() or tuple(embedding.shape) != shape:
        raise ValueError(f"embedding: expected float {shape}, got {_described(embedding)}")
    if check_values and not bool(torch.isfinite(embedding).all()):
        raise ValueError(f"embedding: expected finite float {shape}, got {_described(embedding)} with NaN or infinity")


def require_batch(batch: Mapping[str, Tensor], *, num_steps: int, channels: int) -> None:
    """Raise ValueError unless the parts of a batch that the model indexes with fit each other and the model."""
    missing = [key for key in _BATCH_KEYS if key not in batch]
    if missing:
        raise ValueError(f"batch: {missing[0]!r} is missing; rt_models.spec.BATCH lists its keys")
    frames, index = batch["frames"], batch["frame_index"]
    if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[-1] != channels:
        raise ValueError(f"batch['frames']: expected uint8 (F, H, W, {channels}) in 0..255, got {_described(frames)}")
    if index.dim() != 2 or index.shape[1] != num_steps:
        raise ValueError(f"batch['frame_index']: expected int64 (B, {num_steps}), got {_described(index)}")
    require_embeddings(batch["embedding"], leading=tuple(index.shape), check_values=False)


def require_rows(batch: Mapping[str, Tensor], *, max_tokens: int, vocab_size: int) -> None:
    """Raise ValueError unless frames, image places and tokens of an RT-2 batch fit each other and the model."""
    missing = [key for key in ("frames", "image_index", "tokens", "token_mask") if key not in batch]
    if missing:
        raise ValueError(f"batch: {missing[0]!r} is missing; rt_models/rt2.py lists the keys")
    frames, index, tokens = batch["frames"], batch["image_index"], batch["tokens"]
    if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[-1] != 3:
        raise ValueError(f"batch['frames']: expected uint8 RGB (F, H, W, 3) in 0..255, got {_described(frames)}")
    if tokens.dim() != 2 or tokens.dtype != torch.int64 or len(tokens) != len(index):
        raise ValueError(f"batch['tokens']: expected int64 ({len(index)}, L), got {_described(tokens)}")
    if tokens.shape[1] > max_tokens:
        raise ValueError(f"batch['tokens']: rows of {tokens.shape[1]} tokens, the context holds {max_tokens}")
    if tokens.device.type == "cpu" and tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        low, high = int(tokens.min()), int(tokens.max())
        raise ValueError(f"batch['tokens']: ids {low} to {high}, the model's vocabulary has {vocab_size}")


def _described(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _range(low: float, high: float) -> str:
    return "that are NaN" if low != low else f"in [{low:.4g}, {high:.4g}]"
