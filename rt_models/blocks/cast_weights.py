"""Weights in the precision that autocast would cast them to at every call."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from rt_models.blocks.linear import ZeroLinear


def cast_weights(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Cast the linear and convolutional layers of a model at work, in place; under autocast it answers as before.

    What autocast does not cast stays as it is: FiLM, and a layer that shares its weight, such as an output that is tied
    to the embedding.
    """
    layers = [p for p in model.modules() if isinstance(p, nn.Linear | nn.Conv2d) and not isinstance(p, ZeroLinear)]
    owners = Counter(id(p) for part in model.modules() for p in part.parameters(recurse=False))
    for layer in layers:
        if all(owners[id(parameter)] == 1 for parameter in layer.parameters(recurse=False)):
            layer.to(dtype)
