"""From an RT-2 batch's uint8 frames to the pictures the vision encoder sees.

Frames of robots may be moved by RT-1's pad-and-crop, keyed by `crop_key`; pictures of the web never are, because their
questions ask where things stand.

Axes: B rows, I image places of a row, F frames of the batch, N distinct pictures, C colours, HW pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rt_models.blocks.keyed_random import mix
from rt_models.config_checks import require_choices, require_sizes
from rt_models.vision.image_inputs import distinct, pad_crop

PIXEL_LIMIT = 16.0
"""A normalised pixel beyond this (a picture in [0, 1] stays within 1) is cut: any finite input has finite logits."""


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """How frames become pictures."""

    image_size: int = 256
    """Rows and columns of the picture the model sees; frames are squashed to it, antialiased."""
    robot_crop: Literal["pad", "none"] = "none"
    """Random crop of robot frames in training: RT-1's pad-and-crop, or none."""
    crop_seed: int = 0
    """Seed of the random crops."""

    def __post_init__(self) -> None:
        require_sizes(self, "image_size", part="picture.")
        require_choices(self, "picture.")


def pictures(
    batch: Mapping[str, Tensor], config: PictureConfig, *, augment: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(float (N, 3, size, size) in [0, 1], int64 (B, I) place of each image among them, -1 where there is none)."""
    frames, place_BI = batch["frames"], batch["image_index"]
    if augment and config.robot_crop == "pad":
        frames, place_BI = _cropped(batch, config.crop_seed)
    image_NCHW = frames.permute(0, 3, 1, 2).to(dtype) / 255
    size = (config.image_size, config.image_size)
    if len(image_NCHW) and image_NCHW.shape[2:] != size:
        image_NCHW = F.interpolate(image_NCHW, size=size, mode="bilinear", align_corners=False, antialias=True)
    return image_NCHW, place_BI


def normalised(image_NCHW: Tensor, dtype: torch.dtype) -> Tensor:
    """[0, 1] to [-1, 1], then cut at the limit."""
    return ((image_NCHW - 0.5) / 0.5).clamp(-PIXEL_LIMIT, PIXEL_LIMIT).to(dtype)


def _cropped(batch: Mapping[str, Tensor], seed: int) -> tuple[Tensor, Tensor]:
    """The distinct pairs of frame and crop: uint8 (N, H, W, 3), and their places.

    In a batch of fixed shapes ("num_images") every image place has a picture of its own, equal ones too: nothing then
    waits for the device.
    """
    index_BI = batch["image_index"]
    if "num_images" in batch:
        place_BI = torch.arange(index_BI.numel(), device=index_BI.device).view_as(index_BI)
        key_N, robot_N = (batch[key][:, None].expand_as(index_BI).flatten() for key in ("crop_key", "is_robot"))
        frames_NHWC = batch["frames"][index_BI.flatten().clamp(min=0)]
        moved_NHWC = pad_crop(frames_NHWC, key_N, seed=seed)
        return torch.where(robot_N[:, None, None, None], moved_NHWC, frames_NHWC), place_BI.where(index_BI >= 0, -1)
    real_M = (index_BI.flatten() >= 0).nonzero().flatten()
    frame_M = index_BI.flatten()[real_M]
    robot_M, key_M = (batch[key][:, None].expand_as(index_BI).flatten()[real_M] for key in ("is_robot", "crop_key"))
    first_N, place_M = distinct(mix(frame_M, torch.where(robot_M, key_M, -1)))
    frames_NHWC, robot_N = batch["frames"][frame_M[first_N]], robot_M[first_N]
    moved_NHWC = pad_crop(frames_NHWC, key_M[first_N], seed=seed)
    place_BI = torch.full_like(index_BI.flatten(), -1).scatter(0, real_M, place_M).view_as(index_BI)
    return torch.where(robot_N[:, None, None, None], moved_NHWC, frames_NHWC), place_BI
