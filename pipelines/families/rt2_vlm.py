"""RT-2 on a pretrained vision-language model (rt_models/rt2_vlm.py) as a family of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pipelines.families.prompts import PromptCost, PromptFamily
from preprocessing.store.web_store import Store
from rt_models.cost.rt2_flops import vlm_cost
from rt_models.language.model_source import is_on_hub, located, source_of
from rt_models.rt2_vlm import RT2VLM, RT2VLMConfig

_BASE = "base"  # beside the weights of a registered model: sizes and tokenizer of the pretrained one


class RT2VLMFamily(PromptFamily[RT2VLMConfig, RT2VLM]):
    config_class, model_class = RT2VLMConfig, RT2VLM
    label = "an RT-2"
    requirements = ("tokenizers", "transformers", "peft")

    def completed(self, config: RT2VLMConfig, stores: Sequence[Store]) -> RT2VLMConfig:
        config = super().completed(replace(config, path=located(config.path)), stores).resolved()
        config.require_loadable()
        return config

    def folders(self, config: RT2VLMConfig) -> tuple[str, ...]:
        return () if is_on_hub(config.path) else (config.path,)

    def built(self, config: RT2VLMConfig, device: torch.device) -> RT2VLM:
        return config.build(device)

    def batch_cost(self, config: RT2VLMConfig) -> PromptCost:
        return PromptCost(counted=vlm_cost(config), random_crop=config.robot_crop == "pad", cameras=config.cameras)

    def carry(self, config: RT2VLMConfig, folder: Path) -> RT2VLMConfig:
        """Sizes and tokenizer of the pretrained model go along; its weights do not."""
        import transformers

        for part in (transformers.AutoConfig, transformers.AutoTokenizer):
            part.from_pretrained(source_of(config.path)).save_pretrained(folder / _BASE)
        return replace(config, path=_BASE, weights="random")

    def carried(self, config: RT2VLMConfig, folder: Path) -> RT2VLMConfig:
        return replace(config, path=str(folder / config.path)) if (folder / config.path).is_dir() else config


FAMILY = RT2VLMFamily()
