"""BatchNorm fused into the convolution before it, for models at work: two passes over the activations fewer."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from rt_models.blocks.batch_norm import BatchNorm

Model = TypeVar("Model", bound=nn.Module)


def fuse_batch_norm(model: Model) -> Model:
    """A copy of `model` for evaluation, with the same outputs up to rounding; a model without such norms itself.

    A norm belongs to the convolution of its own name without "_norm", in the same module.
    """
    if not any(isinstance(part, BatchNorm) for part in model.modules()):
        return model
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, BatchNorm):
                _fold(parent.get_submodule(name.removesuffix("_norm")), norm)
                setattr(parent, name, Fused())
    return model


class Fused(nn.Module):
    """Where a norm was: hands its input on."""

    def forward(self, x_NCHW: Tensor, num_real: Tensor | None = None) -> Tensor:
        return x_NCHW


def _fold(conv: nn.Module, norm: BatchNorm) -> None:
    assert isinstance(conv, nn.Conv2d)
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.config.eps, norm.weight, norm.bias
    )
