"""From an RT-2 batch's uint8 frames to the pictures the vision encoder sees.

Frames of robots may be moved by RT-1's pad-and-crop, keyed by `crop_key`; pictures of the web never are, because their
questions ask where things stand.

Axes: B rows, I image places of a row, F frames of the batch, N distinct pictures, C colours, HW pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rt_models.blocks.keyed_random import mix
from rt_models.camera_roles import MAIN_CAMERA, frames_key, image_index_key
from rt_models.config_checks import require_choices, require_sizes
from rt_models.vision.image_inputs import distinct, of_camera, pad_crop

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
    batch: Mapping[str, Tensor],
    config: PictureConfig,
    *,
    augment: bool,
    dtype: torch.dtype,
    cameras: Sequence[str] = (MAIN_CAMERA,),
) -> tuple[Tensor, Tensor]:
    """(float (N, 3, size, size) in [0, 1], int64 (B, I) place of each image among them, -1 where there is none).

    The images of a row are those of its oldest step first, of each step in the order of `cameras`.
    """
    images, places, first = [], [], 0
    for role in cameras:
        image_NCHW, place_BT = _of_camera(batch, role, config, augment=augment, dtype=dtype)
        places.append(place_BT.where(place_BT < 0, place_BT + first))
        images.append(image_NCHW)
        first += len(image_NCHW)
    if len(cameras) == 1:
        return images[0], places[0]
    return torch.cat(images), torch.stack(places, dim=-1).flatten(1)


def _of_camera(
    batch: Mapping[str, Tensor], role: str, config: PictureConfig, *, augment: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The pictures of one camera, and int64 (B, T) the place of each among them."""
    frames, place_BI = batch[frames_key(role)], batch[image_index_key(role)]
    if augment and config.robot_crop == "pad":
        frames, place_BI = _cropped(batch, role, config.crop_seed)
    image_NCHW = frames.permute(0, 3, 1, 2).to(dtype) / 255
    size = (config.image_size, config.image_size)
    if not len(image_NCHW):
        return image_NCHW.new_zeros(0, 3, *size), place_BI
    if image_NCHW.shape[2:] != size:
        image_NCHW = F.interpolate(image_NCHW, size=size, mode="bilinear", align_corners=False, antialias=True)
    return image_NCHW, place_BI


def normalised(image_NCHW: Tensor, dtype: torch.dtype) -> Tensor:
    """[0, 1] to [-1, 1], then cut at the limit."""
    return ((image_NCHW - 0.5) / 0.5).clamp(-PIXEL_LIMIT, PIXEL_LIMIT).to(dtype)


def _cropped(batch: Mapping[str, Tensor], role: str, seed: int) -> tuple[Tensor, Tensor]:
    """The distinct pairs of frame and crop: uint8 (N, H, W, 3), and their places.

    In a batch of fixed shapes ("num_images") every image place has a picture of its own, equal ones too: nothing then
    waits for the device.
    """
    index_BI, all_frames, crop_B = batch[image_index_key(role)], batch[frames_key(role)], batch["crop_key"]
    if "num_images" in batch:
        place_BI = torch.arange(index_BI.numel(), device=index_BI.device).view_as(index_BI)
        key_N, robot_N = (of_row[:, None].expand_as(index_BI).flatten() for of_row in (crop_B, batch["is_robot"]))
        frames_NHWC = all_frames[index_BI.flatten().clamp(min=0)]
        moved_NHWC = pad_crop(frames_NHWC, of_camera(key_N, role), seed=seed)
        return torch.where(robot_N[:, None, None, None], moved_NHWC, frames_NHWC), place_BI.where(index_BI >= 0, -1)
    real_M = (index_BI.flatten() >= 0).nonzero().flatten()
    frame_M = index_BI.flatten()[real_M]
    robot_M, key_M = (of_row[:, None].expand_as(index_BI).flatten()[real_M] for of_row in (batch["is_robot"], crop_B))
    first_N, place_M = distinct(mix(frame_M, torch.where(robot_M, key_M, -1)))
    frames_NHWC, robot_N = all_frames[frame_M[first_N]], robot_M[first_N]
    moved_NHWC = pad_crop(frames_NHWC, of_camera(key_M[first_N], role), seed=seed)
    place_BI = torch.full_like(index_BI.flatten(), -1).scatter(0, real_M, place_M).view_as(index_BI)
    return torch.where(robot_N[:, None, None, None], moved_NHWC, frames_NHWC), place_BI
