"""What an RT-1 costs, from its configuration: parameters, and floating-point operations by hand count.

Counted are matrix products, convolutions and attention, a multiply-add as two operations, as torch's flop counter does
(a test compares the two). A training step is three forward passes: one forward, two for the gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rt_models.blocks.sequence import OutputSteps, RowPlan
from rt_models.blocks.transformer import TransformerConfig
from rt_models.rt1 import RT1Config
from rt_models.spec import EMBEDDING_WIDTH
from rt_models.vision.efficientnet import EfficientNetConfig, padding
from rt_models.vision.vit import ViTConfig


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Forward operations of the two halves of a model, and its size."""

    parameters: int
    frame_flops: int
    """One frame through an image tokenizer."""
    window_flops: int
    """One window's state and image tokens through the transformer, all steps answered."""
    control_flops: int
    """The same, only the last step answered, and only its state made a token."""
    num_cameras: int
    recomputes: bool
    """Whether activation checkpointing runs the tokenizer a second time in training."""

    def training_flops(self, frames_per_window: float) -> float:
        """Forward and backward of one window. Plain windows have T frames of each camera; k that share a segment, 1 +
        (T-1)/k."""
        frame_passes = 4 if self.recomputes else 3
        return frame_passes * frames_per_window * self.frame_flops + 3 * self.window_flops

    def control_step_flops(self) -> int:
        """One action with cached image tokens."""
        return self.num_cameras * self.frame_flops + self.control_flops


def cost(config: RT1Config) -> Cost:
    """The cost of a configuration; nothing of the model is held in memory."""
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in config.build().parameters())
    return Cost(
        parameters=parameters,
        frame_flops=_tokenizer(config),
        window_flops=_transformer(config, "all") + _state(config, config.num_steps),
        control_flops=_transformer(config, "last") + _state(config, 1),
        num_cameras=len(config.cameras),
        recomputes=config.compute.activation_checkpointing == "blocks",
    )


def _tokenizer(config: RT1Config) -> int:
    size = config.input.image_size
    film = config.conditioning == "film"
    if isinstance(config.backbone, EfficientNetConfig):
        multiply_adds = _efficientnet(config.backbone, size, config.num_channels(), film)
    else:
        multiply_adds = vit_multiply_adds(config.backbone, size, config.num_channels(), film)
    positions = config.backbone.grid(size) ** 2
    width = config.feature_width
    multiply_adds += positions * config.backbone.out_channels() * width + film * 2 * EMBEDDING_WIDTH * width
    if config.token_learner:
        multiply_adds += positions * (width * 64 + 64 * config.num_image_tokens + config.num_image_tokens * width)
    return 2 * multiply_adds


def _efficientnet(config: EfficientNetConfig, size: int, in_channels: int, film: bool) -> int:
    """Multiply-adds of one image."""
    size = _strided(size, 3, 2, config)
    channels = config.stem_channels
    total = size**2 * 9 * in_channels * channels
    for stage in config.stages:
        for number in range(stage.num_blocks):
            width = channels * stage.expansion
            if stage.expansion > 1:
                total += size**2 * channels * width
            size = _strided(size, stage.kernel, stage.stride if number == 0 else 1, config)
            total += size**2 * width * (stage.kernel**2 + stage.channels)
            total += 2 * width * max(1, channels // 4)
            channels = stage.channels
            total += film * 2 * EMBEDDING_WIDTH * channels
    return total + size**2 * channels * config.head_channels


def _strided(size: int, kernel: int, stride: int, config: EfficientNetConfig) -> int:
    return (size + sum(padding(size, kernel, stride, config.padding)) - kernel) // stride + 1


def vit_multiply_adds(config: ViTConfig, size: int, in_channels: int, film: bool) -> int:
    """Multiply-adds of one image."""
    positions = config.grid(size) ** 2
    width = config.width
    layer = positions * width * (4 * width + 2 * positions + 2 * config.hidden) + film * 2 * EMBEDDING_WIDTH * width
    return _vit_stem(config, size, in_channels) + config.num_layers * layer


def _vit_stem(config: ViTConfig, size: int, in_channels: int) -> int:
    positions = config.grid(size) ** 2
    if config.stem == "patches":
        return positions * config.patch_size**2 * in_channels * config.width
    total = 0
    for channels in config.stem_channels():
        size //= 2
        total += size**2 * 9 * in_channels * channels
        in_channels = channels
    return total + positions * in_channels * config.width


def _state(config: RT1Config, steps: int) -> int:
    """The state's token of each step, and once a window that of the values which are absent."""
    return 2 * (steps + 1) * config.state_size() * config.feature_width


def _transformer(config: RT1Config, output_steps: OutputSteps) -> int:
    transformer = config.transformer
    plan = RowPlan(config.layout(), transformer.mask, output_steps)
    rows, keys, outputs = len(plan.rows_R), len(plan.keys_S), len(plan.outputs_O)
    layers = np.full(transformer.num_layers, rows)
    layers[-1] = outputs
    total = rows * config.feature_width * transformer.width + outputs * transformer.width * config.bins
    return 2 * (total + sum(_layer(transformer, int(queries), keys) for queries in layers))


def _layer(config: TransformerConfig, queries: int, keys: int) -> int:
    """Multiply-adds of one layer computed for some rows."""
    inner = config.num_heads * config.key_size
    feed_forward = 3 * config.width * config.hidden if config.feed_forward == "swiglu" else config.width**2
    return queries * (2 * config.width * inner + feed_forward) + keys * (2 * config.width * inner + 2 * queries * inner)
