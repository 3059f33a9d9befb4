"""Linear and convolution layers with the initial values of the official codes.

Each initialises itself in its constructor: under ZeRO-3 a parameter is cut up as soon as its layer exists, and an
initialisation of the finished model would find only pieces.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from rt_models.blocks.initial_values import do_weights_follow

_TRUNCATION = 0.87962566103423978  # standard deviation of a unit normal cut at +-2; flax and Keras divide by it


class LecunLinear(nn.Linear):
    """flax's default: truncated normal of variance 1 / inputs, zero bias."""

    def reset_parameters(self) -> None:
        truncated_normal_(self.weight, self.in_features)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class GlorotLinear(nn.Linear):
    """TokenLearner's: Glorot uniform, bias of standard deviation 1e-6."""

    def reset_parameters(self) -> None:
        if not do_weights_follow():
            nn.init.xavier_uniform_(self.weight)
            nn.init.normal_(self.bias, std=1e-6)


class ZeroLinear(nn.Linear):
    """All zeros, so that what it modulates starts unchanged."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class LecunConv1x1(nn.Conv2d):
    """1x1 convolution without bias, truncated normal of variance 1 / input channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)

    def reset_parameters(self) -> None:
        truncated_normal_(self.weight, self.in_channels)


class PatchConv(nn.Conv2d):
    """Non-overlapping square patches to vectors. What it reads beyond RGB (an object mask) starts with no effect."""

    def __init__(self, in_channels: int, out_channels: int, patch_size: int) -> None:
        super().__init__(in_channels, out_channels, patch_size, patch_size)

    def reset_parameters(self) -> None:
        truncated_normal_(self.weight, 3 * self.kernel_size[0] * self.kernel_size[1])
        nn.init.zeros_(self.weight[:, 3:])
        assert self.bias is not None
        nn.init.zeros_(self.bias)


def truncated_normal_(weight: Tensor, fan_in: int) -> None:
    """Fill with a normal of variance 1 / `fan_in`, cut at two standard deviations."""
    if do_weights_follow():
        return
    std = 1 / math.sqrt(fan_in) / _TRUNCATION
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
