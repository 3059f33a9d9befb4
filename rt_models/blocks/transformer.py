"""RT-1's decoder-only transformer: tokens of images and state in, logits of the actions out (RT-1, section 5.1).

As in google-research/robotics_transformer 4569641b `transformer.py`, and with SwiGLU as in
google-deepmind/open_x_embodiment 9eeb68b9 `models/rt1.py`.
Pre-norm blocks without a final norm; positions are a learned table plus a bias, for one length only.

Axes: B windows, T steps, J tokens of a step before its actions, A actions, D width, N positions, V bins; R, S, O rows
as in `sequence.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rt_models.blocks.linear import LecunLinear, truncated_normal_
from rt_models.blocks.sequence import Layout, MaskRule, OutputSteps, RowPlan
from rt_models.config_checks import require_choices, require_sizes

LAYER_NORM_EPS = 1e-6  # both official codes; torch's default 1e-5 moves logits by 1e-3


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of the transformer; the defaults are those of the TensorFlow release."""

    num_layers: int = 8
    """Transformer blocks."""
    num_heads: int = 8
    """Attention heads."""
    key_size: int = 128
    """Width of one head."""
    width: int = 512
    """Width of a token."""
    hidden: int = 512
    """Inner width of the swiglu feed-forward; the linear one has none."""
    feed_forward: Literal["linear", "linear_bias", "swiglu"] = "linear_bias"
    """One linear layer (JAX's without bias, TensorFlow's with), or SwiGLU."""
    mask: MaskRule = "tf"
    """Whether image tokens see earlier action positions ("tf") or nobody does ("jax")."""
    episode_start: Literal["last_places", "first_places"] = "last_places"
    """Which places of a window the steps take that are fewer than it holds: the last, behind padding (RT-1-X's training
    data), or the first (the TensorFlow release at work). Only their position embeddings differ."""
    dropout: float = 0.1
    """On attention weights and on the feed-forward's output."""

    def __post_init__(self) -> None:
        require_sizes(self, "num_layers", "num_heads", "key_size", "width", "hidden", part="transformer.")
        require_choices(self, "transformer.")

    @staticmethod
    def small() -> TransformerConfig:
        """Learns a thousand frames in minutes on two CPU cores."""
        return TransformerConfig(
            num_layers=3,
            num_heads=4,
            key_size=32,
            width=128,
            hidden=128,
            feed_forward="swiglu",
            mask="jax",
            dropout=0.0,
        )

    @staticmethod
    def tiny() -> TransformerConfig:
        """For tests."""
        return TransformerConfig(
            num_layers=2,
            num_heads=2,
            key_size=8,
            width=16,
            hidden=16,
            feed_forward="swiglu",
            mask="jax",
            dropout=0.0,
        )

    def build(self, layout: Layout, *, in_width: int, bins: int) -> Transformer:
        return Transformer(self, layout, in_width, bins)


class Attention(nn.Module):
    """Multi-head attention of some rows on others, with biases on all four projections."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        inner = config.num_heads * config.key_size
        self.num_heads, self.dropout = config.num_heads, config.dropout
        self.query = LecunLinear(config.width, inner)
        self.key = LecunLinear(config.width, inner)
        self.value = LecunLinear(config.width, inner)
        self.out = LecunLinear(inner, config.width)

    def forward(self, queries_BRD: Tensor, keys_BSD: Tensor, mask: Tensor | None) -> Tensor:
        """`mask` bool (R, S) or (B, 1, R, S), True: may attend; None: all to all."""
        q, k, v = (
            rearrange(part, "b n (h k) -> b h n k", h=self.num_heads)
            for part in (self.query(queries_BRD), self.key(keys_BSD), self.value(keys_BSD))
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out(rearrange(y, "b h n k -> b n (h k)"))


class LinearFeedForward(nn.Module):
    """One linear layer and no activation, as in the released RT-1."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.out = LecunLinear(config.width, config.width, bias=config.feed_forward == "linear_bias")

    def forward(self, x_BRD: Tensor) -> Tensor:
        return self.out(x_BRD)


class SwiGlu(nn.Module):
    """out(silu(swish(x)) * gate(x)), no biases."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.swish = LecunLinear(config.width, config.hidden, bias=False)
        self.gate = LecunLinear(config.width, config.hidden, bias=False)
        self.out = LecunLinear(config.hidden, config.width, bias=False)

    def forward(self, x_BRD: Tensor) -> Tensor:
        return self.out(F.silu(self.swish(x_BRD)) * self.gate(x_BRD))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), for the rows asked for."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.feed_forward = SwiGlu(config) if config.feed_forward == "swiglu" else LinearFeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BRD: Tensor, keys_S: Tensor, mask: Tensor, outputs_O: Tensor | None = None) -> Tensor:
        """All rows, or only `outputs_O`; `mask` has one row for each row computed."""
        normal_BRD = self.attention_norm(x_BRD)
        keys_BSD, queries = normal_BRD[:, keys_S], normal_BRD
        if outputs_O is not None:
            x_BRD, queries = x_BRD[:, outputs_O], normal_BRD[:, outputs_O]
        x_BRD = x_BRD + self.attention(queries, keys_BSD, mask)
        return x_BRD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BRD)))


class OneHotLinear(nn.Module):
    """A dense layer over one-hot classes: a row for each class, plus a bias shared by all."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, width))
        self.bias = nn.Parameter(torch.zeros(width))
        truncated_normal_(self.weight, num_classes)

    def forward(self, classes: Tensor) -> Tensor:
        """float (..., D) of int64 (...)."""
        return self.weight[classes] + self.bias


class Transformer(nn.Module):
    """Input (and action) token contents -> logits of the actions."""

    def __init__(self, config: TransformerConfig, layout: Layout, in_width: int, bins: int) -> None:
        super().__init__()
        self.layout, self.episode_start = layout, config.episode_start
        self.plan_all = RowPlan(layout, config.mask, "all")
        self.plan_last = RowPlan(layout, config.mask, "last")
        self.token_projection = LecunLinear(in_width, config.width)
        self.position = OneHotLinear(layout.size, config.width)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_layers))
        self.output = LecunLinear(config.width, bins)

    def forward(
        self,
        token_BTJD: Tensor,
        action_BTAD: Tensor | None = None,
        step_mask_BT: Tensor | None = None,
        output_steps: OutputSteps = "all",
    ) -> Tensor:
        """float (B, T, A, V), or (B, 1, A, V) where only the last step is answered.

        `action_BTAD` are the contents of action positions, None: zeros. Steps where `step_mask_BT` is False are
        attended to by no real step; what is computed for them means nothing.
        """
        plan = self.plan_all if output_steps == "all" else self.plan_last
        if action_BTAD is None:
            batch, steps, _, width = token_BTJD.shape
            action_BTAD = token_BTJD.new_zeros(batch, steps, self.layout.num_action_tokens, width)
        content_BND = torch.cat([token_BTJD, action_BTAD], dim=2).flatten(1, 2)
        x_BRD = self.token_projection(content_BND[:, plan.rows_R]) + self.position(self._places(plan, step_mask_BT))
        mask = plan.mask_RS
        if step_mask_BT is not None:
            # Padding attends to padding, or its softmax would have nothing to normalise by.
            real_BR = step_mask_BT[:, plan.step_R]
            mask = (mask & (real_BR[:, None, plan.keys_S] | ~real_BR[:, :, None]))[:, None]
        *inner, last = self.blocks
        for block in inner:
            x_BRD = block(x_BRD, plan.keys_S, mask)
        x_BOD = last(x_BRD, plan.keys_S, mask[..., plan.outputs_O, :], plan.outputs_O)
        return rearrange(self.output(x_BOD), "b (t a) v -> b t a v", a=self.layout.num_action_tokens)

    def _places(self, plan: RowPlan, step_mask_BT: Tensor | None) -> Tensor:
        """int64 (R,) or (B, R): the positions of the rows in the sequence, padding's steps behind the real ones."""
        if step_mask_BT is None or self.episode_start == "last_places":
            return plan.rows_R
        padded_B = step_mask_BT.long().argmax(dim=1)  # steps before the first real one
        return (plan.rows_R - padded_B[:, None] * self.layout.step_size) % self.layout.size
