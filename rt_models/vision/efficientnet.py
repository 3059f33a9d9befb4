"""EfficientNet whose every block is modulated by the instruction (RT-1, section 5.1; Tan and Le, 2019).

In the order a frame travels: padding rules -> stem -> MBConv blocks, each followed by FiLM -> 1x1 head. No pooling, no
classifier. `EfficientNetConfig()` is B3 as in the released RT-1.

Axes: N frames, C channels, HW pixels, D embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rt_models.blocks.activation_checkpointing import ActivationCheckpointing, checkpointed
from rt_models.blocks.batch_norm import BatchNormConfig
from rt_models.blocks.depthwise import ConvGeometry, DepthwiseKernels, depthwise, uses_kernels
from rt_models.blocks.keyed_random import uniform
from rt_models.blocks.linear import ZeroLinear
from rt_models.blocks.norm_functions import norm_affine, norm_silu, norm_silu_gate, without_autocast
from rt_models.config_checks import require_choices, require_share, require_sizes

PaddingRule = Literal["same", "tf_fixed", "torch"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`num_blocks` MBConv blocks of one width; the first has the stride."""

    expansion: int
    """Inner width over input width."""
    kernel: int
    """Rows and columns of the depthwise kernel."""
    stride: int
    """Of the first block."""
    channels: int
    """Output width."""
    num_blocks: int
    """Blocks in a row."""

    def __post_init__(self) -> None:
        require_sizes(self, "expansion", "kernel", "stride", "channels", "num_blocks", part="backbone.stages: ")


B3_STAGES = (
    Stage(expansion=1, kernel=3, stride=1, channels=24, num_blocks=2),
    Stage(expansion=6, kernel=3, stride=2, channels=32, num_blocks=3),
    Stage(expansion=6, kernel=5, stride=2, channels=48, num_blocks=3),
    Stage(expansion=6, kernel=3, stride=2, channels=96, num_blocks=5),
    Stage(expansion=6, kernel=5, stride=1, channels=136, num_blocks=5),
    Stage(expansion=6, kernel=5, stride=2, channels=232, num_blocks=6),
    Stage(expansion=6, kernel=3, stride=1, channels=384, num_blocks=2),
)


@dataclass(frozen=True, kw_only=True)
class EfficientNetConfig:
    """Widths, padding rule and regularisation of a FiLM EfficientNet; the defaults are B3."""

    stem_channels: int = 40
    """Output width of the first convolution."""
    stages: tuple[Stage, ...] = B3_STAGES
    """The blocks, in groups of one width."""
    head_channels: int = 1536
    """Output width of the last convolution."""
    padding: PaddingRule = "same"
    """Zero padding of strided convolutions: JAX's SAME, the TensorFlow release's fixed one, or torch's kernel // 2."""
    stochastic_depth: float = 0.2
    """Chance that a frame skips the last block's branch; grows linearly from 0 at the first block."""
    batch_norm: BatchNormConfig = field(default_factory=BatchNormConfig)

    def __post_init__(self) -> None:
        require_sizes(self, "stem_channels", "head_channels", part="backbone.")
        require_choices(self, "backbone.")
        require_share(self, "stochastic_depth", "backbone.")

    @staticmethod
    def small() -> EfficientNetConfig:
        """For images of 64 pixels, on a CPU."""
        stages = (
            Stage(expansion=1, kernel=3, stride=2, channels=24, num_blocks=1),
            Stage(expansion=4, kernel=5, stride=2, channels=48, num_blocks=2),
            Stage(expansion=4, kernel=3, stride=1, channels=64, num_blocks=2),
        )
        return EfficientNetConfig(
            stem_channels=16,
            stages=stages,
            head_channels=192,
            stochastic_depth=0.0,
            batch_norm=BatchNormConfig(momentum=0.9),
        )

    @staticmethod
    def tiny() -> EfficientNetConfig:
        """For tests."""
        stages = (
            Stage(expansion=1, kernel=3, stride=1, channels=8, num_blocks=1),
            Stage(expansion=2, kernel=5, stride=2, channels=8, num_blocks=2),
        )
        return EfficientNetConfig(stem_channels=8, stages=stages, head_channels=16, stochastic_depth=0.0)

    def build(
        self, *, in_channels: int, image_size: int, embedding_width: int, checkpointing: ActivationCheckpointing = "off"
    ) -> EfficientNet:
        """`embedding_width` 0 leaves FiLM out; any `image_size` will do."""
        return EfficientNet(self, in_channels, embedding_width, checkpointing)

    def out_channels(self) -> int:
        return self.head_channels

    def grid(self, image_size: int) -> int:
        """Rows (and columns) of the feature map of a square image."""
        for kernel, stride in [(3, 2), *((stage.kernel, stage.stride) for stage in self.stages)]:
            low, high = padding(image_size, kernel, stride, self.padding)
            image_size = (image_size + low + high - kernel) // stride + 1
        return image_size


def padding(size: int, kernel: int, stride: int, rule: PaddingRule) -> tuple[int, int]:
    """Zeros (before, after) along one axis of `size` pixels.

    "same" splits what ceil(size / stride) outputs need, the odd pixel after (JAX). "tf_fixed" is what the
    TensorFlow release computes at unknown image size: one pixel fewer before than after, whatever the size.
    """
    if rule == "torch" or (stride == 1 and rule == "tf_fixed"):
        return kernel // 2, kernel // 2
    if rule == "tf_fixed":
        return kernel // 2 - 1, kernel // 2
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Conv(nn.Conv2d):
    """Convolution without bias under a stated padding rule; normal initial values of variance 2 / fan-out."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, rule: PaddingRule, *, groups: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups, bias=False)
        self.rule: PaddingRule = rule

    def reset_parameters(self) -> None:
        fan_out_normal_(self)

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        top, bottom = padding(input.shape[-2], kernel, stride, self.rule)
        left, right = padding(input.shape[-1], kernel, stride, self.rule)
        if (top, left) == (bottom, right):
            return F.conv2d(input, self.weight, self.bias, self.stride, (top, left), 1, self.groups)
        if input.device.type == "cpu" and not torch.is_grad_enabled():
            # Zeros before the kernel move it as fewer zeros before the image would, without a copy of the image: 2.7
            # times faster for the widest layer of B3. The kernel's own gradient would cost more than the copy.
            weight = F.pad(self.weight, (right - left, 0, bottom - top, 0))
            return F.conv2d(input, weight, self.bias, self.stride, (bottom, right), 1, self.groups)
        padded = F.pad(input, (left, right, top, bottom))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, 1, self.groups)


class DepthwiseConv(Conv):
    """A kernel for each channel. `kernels` "auto": on a GPU and in channels_last, in Triton kernels of ours."""

    kernels: DepthwiseKernels = "auto"

    def forward(self, input: Tensor) -> Tensor:
        if self.kernels != "auto" or not uses_kernels(input):
            return super().forward(input)
        kernel, stride = self.kernel_size[0], self.stride[0]
        top, bottom = padding(input.shape[-2], kernel, stride, self.rule)
        left, right = padding(input.shape[-1], kernel, stride, self.rule)
        height = (input.shape[-2] + top + bottom - kernel) // stride + 1
        width = (input.shape[-1] + left + right - kernel) // stride + 1
        geometry = ConvGeometry(kernel=kernel, stride=stride, top=top, left=left, height=height, width=width)
        return depthwise(input, self.weight, self.bias, geometry)


class StemConv(Conv):
    """The first convolution; what it reads beyond RGB (an object mask) starts with no effect."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.weight[:, 3:])


class SqueezeExcite(nn.Module):
    """The weights of the channel gates; `reduced` counts from the block's input, not its expanded width."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.reduce = _GateConv(channels, reduced, 1)
        self.expand = _GateConv(reduced, channels, 1)


class _GateConv(nn.Conv2d):
    """A 1x1 convolution in name and weights, of one position: computed as the matrix product that it is."""

    def reset_parameters(self) -> None:
        fan_out_normal_(self)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.flatten(1), self.bias)


class MBConv(nn.Module):
    """Expand, depthwise convolution, squeeze-excite, project; with a residual where the shape is kept."""

    def __init__(
        self, in_channels: int, stage: Stage, stride: int, config: EfficientNetConfig, drop_rate: float
    ) -> None:
        super().__init__()
        width, norm, rule = in_channels * stage.expansion, config.batch_norm.build, config.padding
        self.expand = Conv(in_channels, width, 1, 1, rule) if stage.expansion > 1 else None
        self.expand_norm = norm(width) if stage.expansion > 1 else None
        self.depthwise = DepthwiseConv(width, width, stage.kernel, stride, rule, groups=width)
        self.depthwise_norm = norm(width)
        self.gate = SqueezeExcite(width, max(1, in_channels // 4))
        self.project = Conv(width, stage.channels, 1, 1, rule)
        self.project_norm = norm(stage.channels)
        self.residual = stride == 1 and in_channels == stage.channels
        self.drop_rate = drop_rate

    def branch(self, x_NCHW: Tensor, num_real: Tensor | None) -> Tensor:
        """The features before the last norm."""
        y = x_NCHW
        if self.expand is not None and self.expand_norm is not None:
            y = norm_silu(self.expand_norm, self.expand(y), num_real)
        y = norm_silu_gate(self.depthwise_norm, self.gate.reduce, self.gate.expand, self.depthwise(y), num_real)
        return self.project(y)

    def kept(self, uniform_N: Tensor | None) -> Tensor | None:
        """float (N,): what the branch of each frame is multiplied by; None: 1.

        `uniform_N` in [0, 1) decides whether it is dropped; None: never.
        """
        if uniform_N is None or not self.drop_rate or not self.residual:
            return None
        return (uniform_N >= self.drop_rate).to(uniform_N.dtype) / (1 - self.drop_rate)


class Film(nn.Module):
    """(1 + mult) * x + add, both linear in the embedding and zero at first (Perez et al., 2018)."""

    def __init__(self, channels: int, embedding_width: int) -> None:
        super().__init__()
        self.add = ZeroLinear(embedding_width, channels)
        self.mult = ZeroLinear(embedding_width, channels)

    def forward(self, x_NCHW: Tensor, embedding_ND: Tensor) -> Tensor:
        scale_NC, add_NC = (each.to(x_NCHW.dtype) for each in self.scale_and_add(embedding_ND))
        return torch.addcmul(add_NC[:, :, None, None], x_NCHW, scale_NC[:, :, None, None])

    def scale_and_add(self, embedding_ND: Tensor) -> tuple[Tensor, Tensor]:
        """(1 + mult, add), each (N, C), in the weights' type under autocast too: casts took longer than products."""
        with without_autocast(embedding_ND.device):
            embedding_ND = embedding_ND.to(self.mult.weight.dtype)
            return 1 + self.mult(embedding_ND), self.add(embedding_ND)


class Block(nn.Module):
    """One MBConv and the FiLM after it, which also covers the residual."""

    def __init__(self, mbconv: MBConv, film: Film | None) -> None:
        super().__init__()
        self.mbconv, self.film = mbconv, film

    def forward(
        self, x_NCHW: Tensor, embedding_ND: Tensor, kept_N: Tensor | None, num_real: Tensor | None = None
    ) -> Tensor:
        """`kept_N` as of `MBConv.kept`. It is no number of the block's, so that blocks of a shape are one program."""
        block = self.mbconv
        scale_NC, add_NC = (None, None) if self.film is None else self.film.scale_and_add(embedding_ND)
        return norm_affine(
            block.project_norm,
            block.branch(x_NCHW, num_real),
            num_real,
            residual_NCHW=x_NCHW if block.residual else None,
            kept_N=kept_N,
            scale_NC=scale_NC,
            add_NC=add_NC,
        )


class EfficientNet(nn.Module):
    """float (N, C, H, W) normalised images and (N, D) embeddings -> float (N, head_channels, h, w) features."""

    def __init__(
        self, config: EfficientNetConfig, in_channels: int, embedding_width: int, checkpointing: ActivationCheckpointing
    ) -> None:
        super().__init__()
        self.checkpointing: ActivationCheckpointing = checkpointing
        self.stem = StemConv(in_channels, config.stem_channels, 3, 2, config.padding)
        self.stem_norm = config.batch_norm.build(config.stem_channels)
        total = sum(stage.num_blocks for stage in config.stages)
        self.blocks, channels = nn.ModuleList(), config.stem_channels
        for stage in config.stages:
            for number in range(stage.num_blocks):
                rate = config.stochastic_depth * len(self.blocks) / total
                mbconv = MBConv(channels, stage, stage.stride if number == 0 else 1, config, rate)
                film = Film(stage.channels, embedding_width) if embedding_width else None
                self.blocks.append(Block(mbconv, film))
                channels = stage.channels
        self.head = Conv(channels, config.head_channels, 1, 1, config.padding)
        self.head_norm = config.batch_norm.build(config.head_channels)

    def forward(
        self,
        image_NCHW: Tensor,
        embedding_ND: Tensor,
        key_N: Tensor | None = None,
        num_real: Tensor | None = None,
    ) -> Tensor:
        """`key_N` int64 keys the dropped branches of each frame in training; None drops none.

        The first `num_real` images, an integer tensor (1,), are frames; the others pad the batch. None: all are frames.
        """
        x = norm_silu(self.stem_norm, self.stem(image_NCHW), num_real)
        uniform_BN = None
        if key_N is not None and self.training:  # of all blocks at once: drawn one by one they take 900 kernels
            uniform_BN = uniform(key_N, torch.arange(len(self.blocks), device=key_N.device)[:, None])
        for number, block in enumerate(self.blocks):
            uniform_N = None if uniform_BN is None else uniform_BN[number]
            assert isinstance(block, Block)
            kept_N = block.mbconv.kept(uniform_N)
            x = checkpointed(block, self.checkpointing, x, embedding_ND, kept_N, num_real)
        return norm_silu(self.head_norm, self.head(x), num_real)


def fan_out_normal_(conv: nn.Conv2d) -> None:
    """Normal of variance 2 / fan-out; a depthwise kernel's fan-out counts one channel (TF's layout)."""
    fan_out = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels // conv.groups
    nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_out))
