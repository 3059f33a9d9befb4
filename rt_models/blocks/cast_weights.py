"""Weights in the precision that autocast would cast them to at every call."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn


def cast_weights(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Cast the linear and convolutional layers of a model at work, in place; under autocast it answers as before.

    A layer that shares its weight, such as an output that is tied to the embedding, stays as it is.
    """
    layers = [part for part in model.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    owners = Counter(id(p) for part in model.modules() for p in part.parameters(recurse=False))
    for layer in layers:
        if all(owners[id(parameter)] == 1 for parameter in layer.parameters(recurse=False)):
            layer.to(dtype)
