"""Settings of a model that cannot be are refused when they are made, not when they are trained with."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rt_models.blocks.batch_norm import BatchNormConfig
from rt_models.blocks.transformer import TransformerConfig
from rt_models.rt1 import ComputeConfig
from rt_models.vision.efficientnet import EfficientNetConfig, Stage
from rt_models.vision.image_inputs import InputConfig
from rt_models.vision.vit import ViTConfig


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ComputeConfig(precision="fp16"), "compute.precision must be one of as_is, bf16, got 'fp16'"),
        (lambda: ComputeConfig(memory_format="NHWC"), "compute.memory_format must be one of channels_last"),
        (lambda: TransformerConfig(mask="causal"), "transformer.mask must be one of tf, jax, got 'causal'"),
        (
            lambda: TransformerConfig(num_layers=0),
            "transformer.num_layers must be a whole number and at least 1, got 0",
        ),
        (lambda: TransformerConfig(key_size=64.5), "transformer.key_size must be a whole number"),
        (lambda: EfficientNetConfig(padding="valid"), "backbone.padding must be one of same, tf_fixed, torch"),
        (
            lambda: EfficientNetConfig(stochastic_depth=1.5),
            "backbone.stochastic_depth must be between 0 and 1, got 1.5",
        ),
        (lambda: EfficientNetConfig(head_channels=0), "backbone.head_channels"),
        (lambda: Stage(expansion=1, kernel=3, stride=0, channels=8, num_blocks=1), "backbone.stages: stride"),
        (lambda: ViTConfig(num_heads=0), "backbone.num_heads must be a whole number and at least 1"),
        (lambda: ViTConfig(stem="conv"), "backbone.stem must be one of patches, convolutions"),
        (lambda: InputConfig(crop="random"), "input.crop must be one of pad, none"),
        (lambda: BatchNormConfig(statistics="sync"), "batch_norm.statistics must be one of frozen, per_rank, synchron"),
        (lambda: BatchNormConfig(momentum=float("nan")), "batch_norm.momentum must be between 0 and 1, got nan"),
        (lambda: BatchNormConfig(eps=0.0), "batch_norm.eps must be above 0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
