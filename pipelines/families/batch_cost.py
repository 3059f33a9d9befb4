"""What a micro-batch costs its model: images encoded, operations of a training step, tokens that are trained on.

Operations are the model's own, forward and backward once: what activation checkpointing computes again is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pipelines.families.models import ModelConfig
from rt_models.cost import rt1_flops as flops
from rt_models.cost import rt2_flops
from rt_models.rt1 import RT1Config
from rt_models.rt2 import RT2Config


class BatchCost:
    """The costs of one model's batches, which lie on the host."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._rt1: flops.Cost | None = None
        self._rt2: rt2_flops.RT2Cost | rt2_flops.VLMCost | None = None
        with torch.random.fork_rng(devices=[]):  # counting builds a model: the run's random numbers stay as they were
            if isinstance(config, RT1Config):
                self._rt1 = flops.cost(config)
            elif isinstance(config, RT2Config):
                self._rt2 = rt2_flops.cost(replace(config, activation_checkpointing="off"))
            else:
                self._rt2 = rt2_flops.vlm_cost(config)

    def frames(self, batch: Mapping[str, Tensor]) -> int:
        """Images that a training step encodes: distinct frames, and with random crops distinct (frame, crop) pairs."""
        config = self._config
        if isinstance(config, RT1Config):
            index, is_cropped_B = batch["frame_index"], torch.full_like(batch["crop_key"], config.input.crop == "pad")
        elif (config.picture if isinstance(config, RT2Config) else config).robot_crop == "pad":
            index, is_cropped_B = batch["image_index"], batch["is_robot"]
        else:
            return len(batch["frames"])
        _, crop_B = batch["crop_key"].unique(return_inverse=True)
        crop_B = torch.where(is_cropped_B.bool(), crop_B + 1, 0)
        pairs = crop_B[:, None] * len(batch["frames"]) + index
        return len(pairs[index >= 0].unique())

    def training_flops(self, batch: Mapping[str, Tensor], frames: int) -> float:
        """Operations of forward and backward with so many encoded frames."""
        if self._rt2 is not None:
            return self._rt2.training_flops(batch, frames)
        assert self._rt1 is not None
        return 3.0 * (frames * self._rt1.frame_flops + len(batch["sample_id"]) * self._rt1.window_flops)


def trained_tokens(config: ModelConfig, batch: Mapping[str, Tensor]) -> Tensor:
    """int64 (B,): how many tokens of each sample the loss is taken over."""
    if not isinstance(config, RT1Config):
        return batch["answer_mask"].sum(dim=1)
    steps = batch["loss_mask"].shape[1] if config.loss_on == "all" else 1
    return batch["loss_mask"][:, -steps:].sum(dim=1) * batch["action_mask"].sum(dim=1)
