from __future__ import annotations

from torch import nn

from pipelines.config.optimizer import AdamConfig, AdamWConfig
from pipelines.training.initial_weights import freeze
from rt_models.rt1 import RT1Config


def test_norms_and_biases_are_not_decayed() -> None:
    model = RT1Config.tiny().build()
    groups = AdamWConfig(weight_decay=0.3).build(model).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        matrix = name.endswith("weight") and parameter.ndim >= 2
        assert decay[id(parameter)] == (0.3 if matrix else 0.0), name
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert norms and all(decay[id(norm.weight)] == 0.0 for norm in norms)


def test_adam_has_the_epsilon_of_rt1() -> None:
    (group,) = AdamConfig().build(nn.Linear(2, 2)).param_groups
    assert group["eps"] == 1e-7 and group["betas"] == (0.9, 0.999)


def test_what_is_frozen_is_no_optimizers_business() -> None:
    model = RT1Config.tiny().build()
    freeze(model, ["tokenizer."])
    for config in (AdamConfig(), AdamWConfig()):
        held = {id(parameter) for group in config.build(model).param_groups for parameter in group["params"]}
        trained = {id(parameter) for name, parameter in model.named_parameters() if not name.startswith("tokenizer.")}
        assert held == trained
