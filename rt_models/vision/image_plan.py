"""Which images a batch has, worked out on the host before the batch goes to its device, padded to a fixed number.

On a GPU every new number of images costs: cuDNN prepares its convolutions anew (some 0.7 s for each depthwise one, 10 s
for an EfficientNet-B3), and no CUDA graph can be replayed. And asking the device how many distinct images a batch has
makes the host wait. So `plan_images` finds them here and names them, the real ones first; `image_inputs.prepare` then
only gathers.

Axes: B windows, T steps, N images with those that pad, M real steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rt_models.camera_roles import MAIN_CAMERA
from rt_models.vision.image_inputs import images_of, plan_keys


def plan_images(
    batch: Mapping[str, Tensor], *, crops: bool, capacities: Sequence[int], cameras: Sequence[str] = (MAIN_CAMERA,)
) -> dict[str, Tensor]:
    """The batch (of `rt_models.spec.batch_fields`, on the host) with the plan of the images that these cameras,
    together, have: as many as the smallest of `capacities` that holds them. `crops` as in `image_inputs.prepare`.

    Raises ValueError if none does.
    """
    frame_N, step_N, place, counts = images_of(batch, cameras, crops=crops)
    count = sum(counts)
    if not count and MAIN_CAMERA in cameras:
        raise ValueError("batch: no window has a real step, so there is nothing to compute")
    capacity = min((size for size in capacities if size >= count), default=None)
    if capacity is None:
        raise ValueError(f"a batch has {count} images, and the largest capacity is {max(capacities)}")
    padding = (0, capacity - count)
    plan = (F.pad(frame_N, padding), F.pad(step_N, padding), place, torch.tensor([count], dtype=torch.int32))
    return {**batch, **dict(zip(plan_keys(cameras), plan, strict=True))}
