"""What the benchmarks train on: windows of synthetic frames, laid out as the loader lays them out.

`windows_per_segment` k gives segments of k neighbouring windows, which share T + k - 1 frames and one crop; k = 1 gives
plain windows, each with T frames and a crop of its own. No window is padded: all begin inside an episode.

Axes: B windows, T steps, F frames, HWC pixels, A actions, D embedding.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from rt_models.rt1 import RT1, RT1Config
from rt_models.spec import EMBEDDING_WIDTH, check_batch

Batch = dict[str, Tensor]

PRESETS = {
    "tiny": RT1Config.tiny,
    "small": RT1Config.small,
    "rt1_jax": RT1Config.rt1_jax,
    "rt1": RT1Config.rt1,
    "rt1x": RT1Config.rt1x,
}
FRAME_SIZE = {"tiny": (96, 96), "small": (96, 96)}
"""Rows and columns of the frames: those of the shipped Meta-World episodes."""
RT1_FRAME_SIZE = (256, 320)
"""Those of RT-1's own camera, for every other preset."""


def add_presets(parser: argparse.ArgumentParser, *default: str) -> None:
    text = f"models (default: {' '.join(default)})"
    parser.add_argument("--presets", nargs="+", choices=sorted(PRESETS), default=list(default), help=text)


def frames(preset: str, num_frames: int) -> Tensor:
    """uint8 (F, H, W, 3) of noise: what a pixel holds costs nothing."""
    return torch.randint(256, (num_frames, *FRAME_SIZE.get(preset, RT1_FRAME_SIZE), 3), dtype=torch.uint8)


def batch(preset: str, *, num_segments: int, windows_per_segment: int) -> Batch:
    """A batch of `rt_models.spec.BATCH`; every segment has an episode and an instruction of its own."""
    config = PRESETS[preset]()
    spec, steps, size = config.action_spec(), config.num_steps, windows_per_segment
    num_windows, frames_per_segment = num_segments * size, steps + size - 1
    segment_B = torch.arange(num_segments).repeat_interleave(size)
    inside_B = torch.arange(size).repeat(num_segments)
    first_frame_B = segment_B * frames_per_segment + inside_B
    low_A, high_A = (torch.from_numpy(bound) for bound in spec.bounds())
    made = {
        "frames": frames(preset, num_segments * frames_per_segment),
        "frame_index": first_frame_B[:, None] + torch.arange(steps),
        "step_mask": torch.ones(num_windows, steps, dtype=torch.bool),
        "loss_mask": torch.ones(num_windows, steps, dtype=torch.bool),
        "embedding": torch.randn(num_segments, 1, EMBEDDING_WIDTH)[segment_B].repeat(1, steps, 1),
        "action": low_A + (high_A - low_A) * torch.rand(num_windows, steps, spec.size),
        "action_mask": torch.ones(num_windows, spec.size, dtype=torch.bool),
        "sample_id": torch.arange(num_windows),
        "crop_key": segment_B * size,
        "store": torch.zeros(num_windows, dtype=torch.int64),
        "episode": segment_B,
        "step": inside_B + steps - 1,
    }
    check_batch(made, action_size=spec.size)
    return made


def accumulate(model: RT1, micro_batches: Sequence[Batch]) -> None:
    """Forward and backward of a global batch: the gradient of the mean loss, from no gradient."""
    model.zero_grad(set_to_none=True)
    for micro_batch in micro_batches:
        (model.loss(micro_batch) / len(micro_batches)).backward()
