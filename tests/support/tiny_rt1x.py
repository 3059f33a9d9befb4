"""A small RT-1-X and its weights as the official JAX code names and shapes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from rt_models import rt1_weights
from rt_models.rt1 import RT1, RT1Config


def tiny_rt1x() -> RT1:
    """RT-1-X's tokenizer, which an import expects, before a narrow transformer of two steps."""
    full = RT1Config.rt1x()
    narrow = replace(full.transformer, num_layers=1, num_heads=2, key_size=8, width=16, hidden=16)
    torch.manual_seed(0)
    built = replace(full, transformer=narrow, num_steps=2, num_image_tokens=4, feature_width=16).build()
    for name, buffer in built.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return built.eval()


@torch.no_grad()
def as_flax(model: RT1) -> dict[str, np.ndarray]:
    """The flat flax tree that `from_flax` reads as this model."""
    heads = model.config.transformer.num_heads
    back = {
        rt1_weights._conv: lambda value: value.transpose(2, 3, 1, 0),
        rt1_weights._depthwise: lambda value: value.transpose(2, 3, 0, 1),
        rt1_weights._heads_in: lambda value: value.T.reshape(value.shape[1], heads, -1),
        rt1_weights._heads_out: lambda value: value.T.reshape(heads, -1, value.shape[0]),
        np.transpose: np.transpose,
    }
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    leaves = list(rt1_weights._flax_leaves(model.config))
    found = {leaf.theirs: back.get(leaf.turned, np.asarray)(state[leaf.ours]) for leaf in leaves}
    return found | {leaf.theirs: found[leaf.theirs].reshape(leaf.shape) for leaf in leaves if leaf.shape}
