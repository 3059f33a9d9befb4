"""Frames as they may look on another day, in three strengths: blurred, darker, with something in the way, nearer.

Strengths are shares of the picture, so that they mean the same at every size. Everything is a function of the frame
alone: the same step is perturbed in the same way in every evaluation.

Axes: F frames, HWC pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.families.base import ChangeFrames


def blur(frame_FHWC: Tensor, sigma: float) -> Tensor:
    """A Gaussian whose standard deviation is `sigma` of the height."""
    pixels = max(sigma * frame_FHWC.shape[1], 1e-3)
    reach = max(round(3 * pixels), 1)
    place = torch.arange(-reach, reach + 1, device=frame_FHWC.device, dtype=torch.float32)
    weight = torch.exp(-0.5 * (place / pixels) ** 2)
    weight = (weight / weight.sum()).repeat(3, 1, 1)
    image = frame_FHWC.permute(0, 3, 1, 2).float()
    image = F.conv2d(F.pad(image, (0, 0, reach, reach), mode="replicate"), weight[:, :, :, None], groups=3)
    image = F.conv2d(F.pad(image, (reach, reach, 0, 0), mode="replicate"), weight[:, :, None, :], groups=3)
    return _pixels(image)


def darken(frame_FHWC: Tensor, factor: float) -> Tensor:
    return (frame_FHWC.float() * factor).round().to(torch.uint8)


def occlude(frame_FHWC: Tensor, side: float) -> Tensor:
    """A grey rectangle in the middle, `side` of the height and of the width."""
    height, width = frame_FHWC.shape[1:3]
    tall, wide = round(side * height), round(side * width)
    top, left = (height - tall) // 2, (width - wide) // 2
    covered = frame_FHWC.clone()
    covered[:, top : top + tall, left : left + wide] = 128
    return covered


def crop(frame_FHWC: Tensor, kept: float) -> Tensor:
    """The middle, `kept` of the height and of the width, enlarged to the whole."""
    height, width = frame_FHWC.shape[1:3]
    tall, wide = max(round(kept * height), 1), max(round(kept * width), 1)
    top, left = (height - tall) // 2, (width - wide) // 2
    middle = frame_FHWC[:, top : top + tall, left : left + wide].permute(0, 3, 1, 2).float()
    return _pixels(F.interpolate(middle, size=(height, width), mode="bilinear", align_corners=False))


def _pixels(image_FCHW: Tensor) -> Tensor:
    return image_FCHW.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


GRADED: Mapping[str, tuple[ChangeFrames, ...]] = {
    "blur": tuple(partial(blur, sigma=sigma) for sigma in (0.01, 0.02, 0.04)),
    "brightness": tuple(partial(darken, factor=factor) for factor in (0.75, 0.5, 0.25)),
    "occlusion": tuple(partial(occlude, side=side) for side in (0.15, 0.3, 0.5)),
    "crop": tuple(partial(crop, kept=kept) for kept in (0.95, 0.9, 0.8)),
}
"""By kind, from weak to strong."""
