"""RT-2 from scratch (rt_models/rt2.py) as a family of models."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from pipelines.families.prompts import PromptCost, PromptFamily
from pipelines.training.co_fine_tuning import texts
from preprocessing.store.web_store import Store
from rt_models.cost.rt2_flops import cost
from rt_models.rt2 import RT2, RT2Config

_TEXTS_LEARNT_FROM = 200_000


class RT2Family(PromptFamily[RT2Config, RT2]):
    config_class, model_class = RT2Config, RT2
    label = "an RT-2"
    requirements = ("tokenizers",)

    def completed(self, config: RT2Config, stores: Sequence[Store]) -> RT2Config:
        return super().completed(with_tokenizer(config, stores), stores)

    def batch_cost(self, config: RT2Config) -> PromptCost:
        return PromptCost(
            counted=cost(replace(config, activation_checkpointing="off")),
            random_crop=config.picture.robot_crop == "pad",
            cameras=config.cameras,
        )


def with_tokenizer(config: RT2Config, stores: Sequence[Store]) -> RT2Config:
    """The config with a tokenizer learnt from the texts of `stores`, where it has none yet.

    The same stores in the same order give the same tokenizer.
    """
    if config.tokenizer.merges:
        return config
    sample = itertools.islice(texts(stores, config.text, config.cameras, config.state), _TEXTS_LEARNT_FROM)
    return replace(config, tokenizer=config.tokenizer.learnt(sample, vocab_size=config.vocab_size))


FAMILY = RT2Family()
