"""RT-2's language model: a decoder-only transformer over rows of image patches and tokens, with a key-value cache.

Pre-norm blocks with RMSNorm, rotary positions (RoPE), grouped-query attention and SwiGLU. Rows are padded at the right,
so under a causal mask nothing real ever sees padding and no mask is needed.

Axes: B rows, S positions, R queried positions, D width, H heads, G key-value heads, K width of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rt_models.blocks.activation_checkpointing import ActivationCheckpointing, checkpointed
from rt_models.blocks.linear import LecunLinear
from rt_models.blocks.transformer import SwiGlu, TransformerConfig
from rt_models.config_checks import require_share, require_sizes
from rt_models.language.answer_loss import gathered

NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of the decoder."""

    width: int = 512
    """Width of a token."""
    num_layers: int = 6
    """Decoder blocks."""
    num_heads: int = 8
    """Attention heads, each of width / num_heads."""
    num_key_value_heads: int = 2
    """Heads of keys and values; each serves num_heads / num_key_value_heads queries."""
    hidden: int = 1408
    """Inner width of SwiGLU."""
    rope_base: float = 10_000.0
    """Base of the wavelengths of the rotary position embedding."""
    dropout: float = 0.0
    """On what each half of a block adds."""

    def __post_init__(self) -> None:
        require_sizes(self, "width", "num_layers", "num_heads", "num_key_value_heads", "hidden", part="decoder.")
        require_share(self, "dropout", "decoder.")
        if not self.rope_base > 0:
            raise ValueError(f"decoder.rope_base must be above 0, got {self.rope_base}")
        if self.width % (2 * self.num_heads):
            raise ValueError(f"decoder.width {self.width} must be a multiple of 2 x num_heads {self.num_heads}")
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"decoder.num_heads {self.num_heads} must be a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    def build(self, *, checkpointing: ActivationCheckpointing = "off") -> Decoder:
        return Decoder(self, checkpointing)


class KeyValueCache:
    """Keys and values of the positions seen so far, for each layer, with room for more at the end of every row."""

    def __init__(self, config: DecoderConfig, length_B: Tensor, size: int, dtype: torch.dtype) -> None:
        shape = (len(length_B), config.num_key_value_heads, size, config.head_width)
        self.length_B = length_B
        """int64: positions that are filled."""
        self.size = size
        self._keys = [torch.zeros(shape, dtype=dtype, device=length_B.device) for _ in range(config.num_layers)]
        self._values = [torch.zeros_like(keys) for keys in self._keys]

    def fill(self, layer: int, keys_BGSK: Tensor, values_BGSK: Tensor) -> None:
        """The first positions of a layer. What stands beyond a row's length is overwritten before it is seen."""
        length = keys_BGSK.shape[2]
        self._keys[layer][:, :, :length], self._values[layer][:, :, :length] = keys_BGSK, values_BGSK

    def append(self, layer: int, keys_BG1K: Tensor, values_BG1K: Tensor) -> tuple[Tensor, Tensor]:
        """Put one position after each row's last; all keys and values of the layer."""
        rows = torch.arange(len(self.length_B), device=self.length_B.device)
        self._keys[layer][rows, :, self.length_B] = keys_BG1K[:, :, 0].to(self._keys[layer].dtype)
        self._values[layer][rows, :, self.length_B] = values_BG1K[:, :, 0].to(self._values[layer].dtype)
        return self._keys[layer], self._values[layer]


class GroupedAttention(nn.Module):
    """Grouped-query attention with rotary positions, no biases (Ainslie et al., 2023; Su et al., 2021)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        inner, shared = config.width, config.num_key_value_heads * config.head_width
        self.num_heads, self.groups = config.num_heads, config.num_key_value_heads
        self.query = LecunLinear(config.width, inner, bias=False)
        self.key = LecunLinear(config.width, shared, bias=False)
        self.value = LecunLinear(config.width, shared, bias=False)
        self.out = LecunLinear(inner, config.width, bias=False)

    def keys_and_values(self, x_BSD: Tensor, angle_BSK: Tensor) -> tuple[Tensor, Tensor]:
        """(B, G, S, K) each."""
        keys = rearrange(self.key(x_BSD), "b s (g k) -> b g s k", g=self.groups)
        return rotate(keys, angle_BSK), rearrange(self.value(x_BSD), "b s (g k) -> b g s k", g=self.groups)

    def forward(
        self, x_BRD: Tensor, angle_BRK: Tensor, keys_BGSK: Tensor, values_BGSK: Tensor, mask: Tensor | None
    ) -> Tensor:
        """`mask` (B, 1, R, S) as of `prefix_mask`; None: causal, and R is S."""
        queries = rotate(rearrange(self.query(x_BRD), "b r (h k) -> b h r k", h=self.num_heads), angle_BRK)
        y = F.scaled_dot_product_attention(
            queries,
            keys_BGSK.to(queries.dtype),
            values_BGSK.to(queries.dtype),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.groups < self.num_heads,
        )
        return self.out(rearrange(y, "b h r k -> b r (h k)"))


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=NORM_EPS)
        self.attention = GroupedAttention(config)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=NORM_EPS)
        self.feed_forward = SwiGlu(TransformerConfig(width=config.width, hidden=config.hidden))
        self.dropout = nn.Dropout(config.dropout)
        # Each half adds to the residual stream 2 x num_layers times: its variance should not grow with the depth.
        with torch.no_grad():
            for last in (self.attention.out, self.feed_forward.out):
                last.weight.mul_(1 / math.sqrt(2 * config.num_layers))

    def forward(
        self, x_BSD: Tensor, angle_BSK: Tensor, mask: Tensor | None, rows_BR: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(outputs, keys, values) of all positions, outputs only of `rows_BR` where given; `mask` has R or S rows."""
        normal_BSD = self.attention_norm(x_BSD)
        keys, values = self.attention.keys_and_values(normal_BSD, angle_BSK)
        if rows_BR is not None:
            x_BSD, normal_BSD, angle_BSK = (gathered(part, rows_BR) for part in (x_BSD, normal_BSD, angle_BSK))
        return self._finish(x_BSD, self.attention(normal_BSD, angle_BSK, keys, values, mask)), keys, values

    def advance(self, x_B1D: Tensor, angle_B1K: Tensor, mask: Tensor, cache: KeyValueCache, layer: int) -> Tensor:
        """One more position of every row, whose keys and values go into the cache."""
        normal_B1D = self.attention_norm(x_B1D)
        keys, values = cache.append(layer, *self.attention.keys_and_values(normal_B1D, angle_B1K))
        return self._finish(x_B1D, self.attention(normal_B1D, angle_B1K, keys, values, mask))

    def _finish(self, x_BRD: Tensor, attended_BRD: Tensor) -> Tensor:
        x_BRD = x_BRD + self.dropout(attended_BRD)
        return x_BRD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BRD)))


class Decoder(nn.Module):
    """float (B, S, D) contents of positions -> float (B, R, D) normalised outputs."""

    def __init__(self, config: DecoderConfig, checkpointing: ActivationCheckpointing) -> None:
        super().__init__()
        self.config = config
        self.checkpointing: ActivationCheckpointing = checkpointing
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.width, eps=NORM_EPS)

    def forward(
        self, x_BSD: Tensor, prefix_B: Tensor | None, rows_BR: Tensor, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Outputs of the positions `rows_BR`. A row's first `prefix_B` positions see each other, the rest is causal.

        The last block computes only what is asked for. `cache` receives every layer's keys and values.
        """
        batch, length = x_BSD.shape[:2]
        positions = torch.arange(length, device=x_BSD.device)
        angle_BSK = self._angles(positions.expand(batch, -1))
        mask = None if prefix_B is None else prefix_mask(positions.expand(batch, -1), prefix_B, x_BSD)
        last_mask = prefix_mask(rows_BR, prefix_B, x_BSD)
        for number, block in enumerate(self.blocks):
            last = number + 1 == len(self.blocks)
            inputs = (x_BSD, angle_BSK, last_mask, rows_BR) if last else (x_BSD, angle_BSK, mask)
            x_BSD, keys, values = checkpointed(block, self.checkpointing, *inputs)
            if cache is not None:
                cache.fill(number, keys, values)
        return self.norm(x_BSD)

    def advance(self, x_B1D: Tensor, cache: KeyValueCache, active_B: Tensor) -> Tensor:
        """Outputs (B, 1, D) of one more position in every row; the cache grows by it in rows that are active."""
        angle_B1K = self._angles(cache.length_B[:, None])
        places = torch.arange(cache.size, device=x_B1D.device)
        mask = (places <= cache.length_B[:, None])[:, None, None]
        for number, block in enumerate(self.blocks):
            assert isinstance(block, DecoderBlock)
            x_B1D = block.advance(x_B1D, angle_B1K, mask, cache, number)
        cache.length_B = cache.length_B + active_B
        return self.norm(x_B1D)

    def _angles(self, positions_BS: Tensor) -> Tensor:
        """float32 (B, S, K / 2)"""
        half = self.config.head_width // 2
        exponent = torch.arange(half, device=positions_BS.device, dtype=torch.float32) / half
        return positions_BS[..., None].float() * self.config.rope_base**-exponent


def prefix_mask(positions_BR: Tensor, prefix_B: Tensor | None, x_BSD: Tensor) -> Tensor:
    """(B, 1, R, S) in the dtype of `x_BSD`: 0 where a position may attend, else -inf.

    A position sees the earlier ones and itself, and a prefix sees all of itself. Not bool: attention would turn that
    into numbers again in every layer.
    """
    places = torch.arange(x_BSD.shape[1], device=x_BSD.device)
    seen_BRS = places <= positions_BR[..., None]
    if prefix_B is not None:
        inside = (places < prefix_B[:, None])[:, None] & (positions_BR < prefix_B[:, None])[..., None]
        seen_BRS = seen_BRS | inside
    return x_BSD.new_zeros(seen_BRS.shape).masked_fill(~seen_BRS, -torch.inf)[:, None]


def rotate(x_BHSK: Tensor, angle_BSK: Tensor) -> Tensor:
    """Turn each pair of a head's halves by its position's angle, in float32."""
    cosine, sine = (
        f(angle_BSK)[:, None].to(torch.promote_types(x_BHSK.dtype, torch.float32)) for f in (torch.cos, torch.sin)
    )
    first, second = x_BHSK.to(cosine.dtype).chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(x_BHSK.dtype)
