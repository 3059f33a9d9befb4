"""A small synthetic episode cut into windows as the loader hands them over, and what models make of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from rt_models.rt1 import RT1Config
from rt_models.spec import EMBEDDING_WIDTH, MAIN_CAMERA, check_batch, frames_key, index_key
from rt_models.vision.image_inputs import crop_offsets, frames_to_images, pad_crop, resize
from rt_models.vision.image_plan import plan_images

Module = TypeVar("Module", bound=nn.Module)


def make_batch(
    config: RT1Config,
    ends: Sequence[int],
    *,
    crop_keys: Sequence[int] | None = None,
    frame_size: tuple[int, int] = (20, 24),
    episode_steps: int = 9,
    seed: int = 0,
    without: Sequence[int] = (),
) -> dict[str, Tensor]:
    """The windows of one random episode that end at `ends`, with what `config` reads.

    There is padding before its first step, its last step is terminal, and the dataset lacks two action dimensions. Each
    camera has frames of a size of its own; the windows numbered `without` have the main camera alone, and no state.
    """
    random = np.random.default_rng(seed)
    spec, ends = config.action_spec(), np.asarray(ends, np.int64)
    frames = random.integers(0, 256, (episode_steps, *frame_size, 3), dtype=np.uint8)
    low, high = spec.bounds()
    actions = random.uniform(low, high, (episode_steps, spec.size)).astype(np.float32)
    actions[:, 0] = random.integers(0, 3, episode_steps)
    embedding = (random.standard_normal(EMBEDDING_WIDTH) / 20).astype(np.float32)
    step = ends[:, None] + np.arange(1 - config.num_steps, 1)
    real = step >= 0
    arrays = {
        "frames": frames,
        "frame_index": np.where(real, step, -1),
        "step_mask": real,
        "loss_mask": real & (step < episode_steps - 1),
        "embedding": np.where(real[..., None], embedding, np.float32(0)),
        "action": np.where(real[..., None], actions[step], np.float32(0)),
        "action_mask": np.tile(np.arange(spec.size) < spec.size - 2, (len(ends), 1)),
        "sample_id": np.arange(len(ends)),
        "crop_key": np.arange(len(ends)) if crop_keys is None else np.asarray(crop_keys),
        "store": np.zeros(len(ends), np.int64),
        "episode": np.zeros(len(ends), np.int64),
        "step": ends,
    }
    if config.image_channels == "rgb+mask":
        arrays["object_mask"] = random.integers(0, 256, frames.shape[:3], dtype=np.uint8)
    lacks_B1 = np.isin(np.arange(len(ends)), without)[:, None]
    for number, role in enumerate(config.cameras, start=1):
        if role != MAIN_CAMERA:
            size = (frame_size[0] + 4 * number, frame_size[1], 3)
            arrays[frames_key(role)] = random.integers(0, 256, (episode_steps, *size), dtype=np.uint8)
            arrays[index_key(role)] = np.where(real & ~lacks_B1, step, -1)
    if MAIN_CAMERA not in config.cameras:
        del arrays["frames"], arrays["frame_index"]
    if config.state_size():
        states = random.uniform(-1, 1, (episode_steps, config.state_size())).astype(np.float32)
        has = np.tile(np.arange(config.state_size()) < 3, (len(ends), 1)) & ~lacks_B1
        arrays |= {"state": np.where((real[..., None] & has[:, None]), states[step], np.float32(0)), "state_mask": has}
    batch = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    check_batch(batch, action_size=spec.size, cameras=config.cameras, state_size=config.state_size())
    return batch


def rows_of(batch: dict[str, Tensor], rows: slice | Sequence[int]) -> dict[str, Tensor]:
    """Some windows of a batch; its frames stay whole."""
    return {name: value if name.startswith("frames") else value[rows] for name, value in batch.items()}


def training_step(
    config: RT1Config, batch: dict[str, Tensor], *, padding: int = 0, device: str = "cpu"
) -> list[Tensor]:
    """Loss (1,), all gradients and all running averages, float64, of a new model's first step in channels_last.

    Its images are found on the host, and `padding` more pad them.
    """
    torch.manual_seed(0)
    model = config.build().to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    images = int((batch["frame_index"] >= 0).sum())
    planned = plan_images(batch, crops=True, capacities=(images + padding,))
    loss = model.loss({name: value.to(device) for name, value in planned.items()})
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    averages = torch.cat([b.flatten() for name, b in model.named_buffers() if "running" in name])
    return [loss.detach().double().reshape(1), gradient.double(), averages.double()]


def frames_both_ways(frames_FHWC: Tensor, frame_N: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(N, size, size, 3) of four of the frames, cropped, resized and normalised: by our kernel, and by torch."""
    device, height = frames_FHWC.device, frames_FHWC.shape[1]
    key_N = torch.tensor([9, 8, 7, 6], device=device)
    mean_C, std_C = (torch.tensor(numbers, device=device) for numbers in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    down_N, right_N = crop_offsets(height, key_N, seed=3)
    constants: Any = {"size": size, "mean_C": mean_C, "std_C": std_C, "dtype": torch.float32}
    made_NCHW = frames_to_images(frames_FHWC, frame_N, down_N, right_N, **constants)
    moved_NHWC = pad_crop(frames_FHWC[frame_N], key_N, seed=3)
    return made_NCHW.permute(0, 2, 3, 1), (resize(moved_NHWC.float() / 255, size) - mean_C) / std_C


def stirred(model: Module, scale: float = 0.1) -> Module:
    """Every parameter and running average moved: a fresh FiLM is zero and would hide what depends on it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(scale * torch.randn(value.shape, generator=generator, dtype=value.dtype))
        for name, value in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                value.add_(0.1 * torch.rand(value.shape, generator=generator, dtype=value.dtype))
    return model
