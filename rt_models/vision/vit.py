"""A vision transformer in EfficientNet's place: the tokenizer's alternative backbone (Dosovitskiy et al., 2021).

The instruction modulates it as it does EfficientNet: FiLM after every block. The defaults are the widths of ViT-S.

Axes: N frames, C or D channels, HW patches, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rt_models.blocks.activation_checkpointing import ActivationCheckpointing, checkpointed
from rt_models.blocks.initial_values import do_weights_follow
from rt_models.blocks.linear import LecunConv1x1, LecunLinear, PatchConv, truncated_normal_
from rt_models.blocks.transformer import LAYER_NORM_EPS, Attention, TransformerConfig
from rt_models.config_checks import require_choices, require_sizes
from rt_models.vision.efficientnet import Film


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes of a FiLM vision transformer."""

    patch_size: int = 20
    """Pixels; must divide the image size."""
    width: int = 384
    """Width of a patch vector."""
    num_layers: int = 12
    """Transformer blocks."""
    num_heads: int = 6
    """Attention heads; must divide width."""
    hidden: int = 1536
    """Inner width of the feed-forward."""
    stem: Literal["patches", "convolutions"] = "patches"
    """How pixels become patch vectors: one linear map of each patch, or small convolutions that halve the picture until
    a position is a patch, which learn from far fewer pictures (Xiao et al., 2021)."""

    def __post_init__(self) -> None:
        require_sizes(self, "patch_size", "width", "num_layers", "num_heads", "hidden", part="backbone.")
        require_choices(self, "backbone.")
        if self.width % self.num_heads:
            raise ValueError(f"backbone.width {self.width} is not a multiple of backbone.num_heads {self.num_heads}")
        if self.stem == "convolutions" and (self.patch_size & (self.patch_size - 1) or self.patch_size < 2):
            raise ValueError(f"backbone.stem convolutions halve: patch_size {self.patch_size} must be a power of two")

    def build(
        self, *, in_channels: int, image_size: int, embedding_width: int, checkpointing: ActivationCheckpointing = "off"
    ) -> ViT:
        """`embedding_width` 0 leaves FiLM out."""
        return ViT(self, in_channels, self.grid(image_size), embedding_width, checkpointing)

    def out_channels(self) -> int:
        return self.width

    def grid(self, image_size: int) -> int:
        """Rows (and columns) of patches of a square image."""
        if image_size % self.patch_size:
            raise ValueError(f"image_size {image_size} is not a multiple of backbone.patch_size {self.patch_size}")
        return image_size // self.patch_size

    def stem_channels(self) -> list[int]:
        """Channels after each of the convolutional stem's halvings: they double up to the width."""
        halvings = self.patch_size.bit_length() - 1
        return [max(8, self.width >> (halvings - 1 - number)) for number in range(halvings)]


class ConvolutionStem(nn.Sequential):
    """float (N, C, H, W) -> (N, width, H / patch, W / patch): 3x3 convolutions of stride 2, then a 1x1."""

    def __init__(self, config: ViTConfig, in_channels: int) -> None:
        layers: list[nn.Module] = []
        for number, channels in enumerate(config.stem_channels()):
            convolution = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False)
            seen = min(in_channels, 3) if number == 0 else in_channels
            truncated_normal_(convolution.weight, 9 * seen)
            nn.init.zeros_(convolution.weight[:, seen:])  # an object mask starts with no effect, as in PatchConv
            layers += [convolution, nn.GroupNorm(1, channels), nn.GELU(approximate="tanh")]
            in_channels = channels
        super().__init__(*layers, LecunConv1x1(in_channels, config.width))


class ViTBlock(nn.Module):
    """Pre-norm attention and GELU feed-forward over all patches, then FiLM."""

    def __init__(self, config: ViTConfig, embedding_width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        heads, width = config.num_heads, config.width
        self.attention = Attention(
            TransformerConfig(num_heads=heads, key_size=width // heads, width=width, dropout=0.0)
        )
        self.feed_forward_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.hidden, self.out = LecunLinear(width, config.hidden), LecunLinear(config.hidden, width)
        self.film = Film(width, embedding_width) if embedding_width else None

    def forward(self, x_NDHW: Tensor, embedding_ND: Tensor) -> Tensor:
        x_NPD = rearrange(x_NDHW, "n d h w -> n (h w) d")
        normal_NPD = self.attention_norm(x_NPD)
        x_NPD = x_NPD + self.attention(normal_NPD, normal_NPD, None)
        x_NPD = x_NPD + self.out(F.gelu(self.hidden(self.feed_forward_norm(x_NPD)), approximate="tanh"))
        x_NDHW = rearrange(x_NPD, "n (h w) d -> n d h w", h=x_NDHW.shape[2])
        return x_NDHW if self.film is None else self.film(x_NDHW, embedding_ND)


class ViT(nn.Module):
    """float (N, C, H, W) normalised images and (N, D) embeddings -> float (N, width, h, w) features."""

    def __init__(
        self,
        config: ViTConfig,
        in_channels: int,
        grid: int,
        embedding_width: int,
        checkpointing: ActivationCheckpointing,
    ) -> None:
        super().__init__()
        self.checkpointing: ActivationCheckpointing = checkpointing
        convolutions = config.stem == "convolutions"
        self.patches = (
            ConvolutionStem(config, in_channels)
            if convolutions
            else PatchConv(in_channels, config.width, config.patch_size)
        )
        self.position = nn.Parameter(torch.empty(config.width, grid, grid))
        if not do_weights_follow():
            nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.ModuleList(ViTBlock(config, embedding_width) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)

    def forward(
        self,
        image_NCHW: Tensor,
        embedding_ND: Tensor,
        key_N: Tensor | None = None,
        num_real: Tensor | None = None,
    ) -> Tensor:
        """`key_N` is taken for EfficientNet's sake: nothing here is random."""
        x_NDHW = self.patches(image_NCHW) + self.position
        for block in self.blocks:
            x_NDHW = checkpointed(block, self.checkpointing, x_NDHW, embedding_ND)
        return self.norm(x_NDHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
