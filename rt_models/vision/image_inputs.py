"""From a batch's uint8 frames to the images the model sees: gather, pad-crop, resize, all on the model's device.

The crop is the official one (google-research/robotics_transformer 4569641b `film_efficientnet/preprocessors.py:60-88`):
black borders, then a random cut of the frame's own size, so the picture moves by up to the border. Borders are 20 rows
and 50 columns for frames of 256 rows, 40 and 100 for 512; other heights have borders in proportion to their height,
rounded to whole pixels. One offset per distinct `crop_key`, a function of the key alone. Frames that windows share
under one crop are prepared (and encoded) once.

Axes: B windows, T steps, F frames of the batch, N distinct images, HW pixels, C colours, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rt_models.blocks.keyed_random import integers, mix
from rt_models.config_checks import require_choices

_ROWS, _COLUMNS = 1, 2  # streams of random numbers


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """How frames become images."""

    image_size: int = 300
    """Rows and columns of the image the model sees; frames are squashed to it."""
    crop: Literal["pad", "none"] = "pad"
    """Random crop in training: the official pad-and-crop, or none. Evaluation never crops."""
    crop_seed: int = 0
    """Seed of the random crops."""

    def __post_init__(self) -> None:
        require_choices(self, "input.")
        if self.image_size < 1:
            raise ValueError(f"input.image_size must be at least 1 pixel, got {self.image_size}")


@dataclass(frozen=True, kw_only=True)
class Images:
    """The N distinct images of a batch and where they stand in its windows."""

    image_NHWC: Tensor
    """float in [0, 1] at model resolution."""
    embedding_ND: Tensor
    key_N: Tensor
    """int64: names the image by crop, store, episode and step, the same on any rank and in any batch."""
    place_BT: Tensor
    """int64: row of `image_NHWC` of each step; -1 on padding."""


def prepare(
    batch: Mapping[str, Tensor], config: InputConfig, *, augment: bool, dtype: torch.dtype, object_mask: bool = False
) -> Images:
    """The images of a batch of `rt_models.spec.BATCH`; `augment` crops, and then only equal crops share an image.

    With `object_mask` the batch's mask is their fourth channel, cropped and resized with them.
    """
    index_BT = batch["frame_index"]
    real_M = (index_BT.flatten() >= 0).nonzero().flatten()  # once: on a GPU every look at data waits for the device
    frame_M, embedding_MD = index_BT.flatten()[real_M], batch["embedding"].flatten(0, 1)[real_M]
    crop_M = batch["crop_key"][:, None].expand_as(index_BT).flatten()[real_M]
    first_N, place_M = distinct(mix(frame_M, _fingerprint(embedding_MD), crop_M if augment else 0))
    place_BT = torch.full_like(index_BT.flatten(), -1).scatter(0, real_M, place_M).view_as(index_BT)
    frames_NHWC = batch["frames"][frame_M[first_N]]
    if object_mask:
        frames_NHWC = torch.cat([frames_NHWC, batch["object_mask"][frame_M[first_N]][..., None]], dim=-1)
    if augment and config.crop == "pad":
        frames_NHWC = pad_crop(frames_NHWC, crop_M[first_N], seed=config.crop_seed)
    return Images(
        image_NHWC=resize(frames_NHWC.to(dtype) / 255, config.image_size),
        embedding_ND=embedding_MD[first_N],
        key_N=mix(crop_M, _frame_keys(batch).flatten()[real_M])[first_N],
        place_BT=place_BT,
    )


def borders(height: int) -> tuple[int, int]:
    """(rows, columns) of black border on each side of a frame of `height` rows."""
    return (20 * height + 128) // 256, (50 * height + 128) // 256


def pad_crop(frames_NHWC: Tensor, key_N: Tensor, *, seed: int) -> Tensor:
    """uint8 (N, H, W, C): each frame moved by its key's offset, black where it has left."""
    height, width = frames_NHWC.shape[1:3]
    border_rows, border_columns = borders(height)
    down_N = integers(2 * border_rows + 1, key_N, seed, _ROWS) - border_rows
    right_N = integers(2 * border_columns + 1, key_N, seed, _COLUMNS) - border_columns
    rows_NH = torch.arange(height, device=key_N.device) + down_N[:, None]
    columns_NW = torch.arange(width, device=key_N.device) + right_N[:, None]
    inside_NH = (rows_NH >= 0) & (rows_NH < height)
    inside_NW = (columns_NW >= 0) & (columns_NW < width)
    number_N11 = torch.arange(len(key_N), device=key_N.device)[:, None, None]
    rows, columns = rows_NH.clamp(0, height - 1)[:, :, None], columns_NW.clamp(0, width - 1)[:, None, :]
    moved_NHWC = frames_NHWC[number_N11, rows, columns]
    return moved_NHWC * (inside_NH[:, :, None] & inside_NW[:, None, :])[..., None]


def resize(image_NHWC: Tensor, size: int) -> Tensor:
    """float (N, size, size, C): bilinear, not antialiased, aspect ratio not kept, as in both official codes."""
    if image_NHWC.shape[1:3] == (size, size):
        return image_NHWC
    image_NCHW = image_NHWC.permute(0, 3, 1, 2)
    resized_NCHW = F.interpolate(image_NCHW, size=(size, size), mode="bilinear", align_corners=False)
    return resized_NCHW.permute(0, 2, 3, 1)


def _frame_keys(batch: Mapping[str, Tensor]) -> Tensor:
    """int64 (B, T): names each frame by store, episode and step; windows end at batch["step"]."""
    num_steps, end_B = batch["frame_index"].shape[1], batch["step"]
    step_BT = end_B[:, None] + torch.arange(1 - num_steps, 1, device=end_B.device)
    return mix(batch["store"][:, None], batch["episode"][:, None], step_BT)


def _fingerprint(embedding_MD: Tensor) -> Tensor:
    """int64 (M,): equal for equal embeddings, as good as surely different for different ones."""
    bits_MD = embedding_MD.float().contiguous().view(torch.int32).long()
    weights_D = mix(torch.arange(bits_MD.shape[1], device=bits_MD.device))
    return (bits_MD * weights_D).sum(dim=1)


def distinct(identity_M: Tensor) -> tuple[Tensor, Tensor]:
    """(index of the first of each distinct value (N,), place of each value among them (M,)), in order of value."""
    values_N, place_M = torch.unique(identity_M, return_inverse=True)
    order_M = torch.arange(len(identity_M), device=identity_M.device)
    first_N = torch.full_like(values_N, len(identity_M)).scatter_reduce(0, place_M, order_M, "amin")
    return first_N, place_M
