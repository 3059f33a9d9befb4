"""The models that an experiment, a checkpoint and a bundle can hold: a new one is a member of the two unions here.

A model config is a frozen dataclass with `build()`, the fresh model, and `action_spec()`; the model has `loss(batch)`,
the mean over the batch's samples, and afterwards `row_losses_B`, what each sample counted in it, detached. In plain
data a config names its class under "type".
"""

from __future__ import annotations

from typing import Any

from pipelines.config.serialization import read_value
from rt_models.rt1 import RT1, RT1Config
from rt_models.rt2 import RT2, RT2Config
from rt_models.rt2_vlm import RT2VLM, RT2VLMConfig

ModelConfig = RT1Config | RT2Config | RT2VLMConfig
Model = RT1 | RT2 | RT2VLM


def model_config(plain: Any) -> ModelConfig:
    """The config that `to_plain` wrote. Raises ValueError for an unknown class or setting."""
    return read_value(ModelConfig, plain, path="model")
