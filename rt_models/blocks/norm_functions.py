"""Batch normalisation together with what follows it in an EfficientNet, each in as few passes over memory as it needs.

    norm_silu         silu(norm(x))
    norm_silu_gate    y gate(mean of y over positions), y = silu(norm(x)): squeeze-excite's input and its gates
    norm_affine       (residual + kept norm(x)) scale + add: stochastic depth, residual and FiLM

On a GPU, in training and in channels_last, each is a Triton kernel for every pass (`norm_kernels.py`): the activations
between x and the result are never written, and backward computes them again from x. Elsewhere it is the same arithmetic
in torch. Only the first `num_real` images count in the statistics (None: all do); the others pad the batch.

Axes: N images, C channels, HW pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from rt_models.blocks.batch_norm import BatchNorm
from rt_models.blocks.triton_kernels import kernel_module, runs_kernels, tile_c


def norm_silu(norm: nn.Module, x_NCHW: Tensor, num_real: Tensor | None = None) -> Tensor:
    """float (N, C, H, W)"""
    if not isinstance(norm, BatchNorm) or not uses_kernels(norm, x_NCHW):
        return silu(norm(x_NCHW, num_real))
    return _NormSilu.apply(x_NCHW, norm.weight, norm.bias, _settings(norm, x_NCHW, num_real))


def norm_silu_gate(
    norm: nn.Module, reduce: nn.Conv2d, expand: nn.Conv2d, x_NCHW: Tensor, num_real: Tensor | None = None
) -> Tensor:
    """float (N, C, H, W): `reduce` and `expand` are squeeze-excite's 1x1 convolutions of the pooled features."""
    if not isinstance(norm, BatchNorm) or not uses_kernels(norm, x_NCHW):
        y_NCHW = silu(norm(x_NCHW, num_real))
        gate_NC = expand(silu(reduce(y_NCHW.mean((2, 3))))).sigmoid()
        return y_NCHW * gate_NC[:, :, None, None]
    weights = (reduce.weight, reduce.bias, expand.weight, expand.bias)
    return _NormSiluGate.apply(x_NCHW, norm.weight, norm.bias, *weights, _settings(norm, x_NCHW, num_real))


def norm_affine(
    norm: nn.Module,
    x_NCHW: Tensor,
    num_real: Tensor | None = None,
    *,
    residual_NCHW: Tensor | None = None,
    kept_N: Tensor | None = None,
    scale_NC: Tensor | None = None,
    add_NC: Tensor | None = None,
) -> Tensor:
    """float (N, C, H, W): (residual + kept norm(x)) scale + add, without what is None."""
    if not isinstance(norm, BatchNorm) or not uses_kernels(norm, x_NCHW):
        y_NCHW = norm(x_NCHW, num_real)
        if kept_N is not None:
            y_NCHW = y_NCHW * kept_N.to(y_NCHW.dtype)[:, None, None, None]
        if residual_NCHW is not None:
            y_NCHW = residual_NCHW + y_NCHW
        if scale_NC is None or add_NC is None:
            return y_NCHW
        scale_NC, add_NC = scale_NC.to(y_NCHW.dtype), add_NC.to(y_NCHW.dtype)
        return torch.addcmul(add_NC[:, :, None, None], y_NCHW, scale_NC[:, :, None, None])
    settings = _settings(norm, x_NCHW, num_real)
    n, c = x_NCHW.shape[:2]
    kept = x_NCHW.new_ones(n, dtype=torch.float32) if kept_N is None else kept_N
    scale = x_NCHW.new_ones(n, c, dtype=torch.float32) if scale_NC is None else scale_NC.float()
    add = x_NCHW.new_zeros(n, c, dtype=torch.float32) if add_NC is None else add_NC.float()
    return _NormAffine.apply(x_NCHW, residual_NCHW, norm.weight, norm.bias, scale, add, kept, settings)


def silu(x: Tensor) -> Tensor:
    """F.silu, in place if no gradient is asked for: no caller here uses `x` again."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def uses_kernels(norm: BatchNorm, x_NCHW: Tensor) -> bool:
    """Whether the Triton kernels take this: training with statistics of the batch, on a GPU, in channels_last."""
    return (
        norm.training
        and runs_kernels(x_NCHW.device)
        and norm.config.statistics != "frozen"
        and x_NCHW.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and norm.weight.numel() == x_NCHW.shape[1]  # not in pieces on other ranks, as under ZeRO-3
        and x_NCHW.is_contiguous(memory_format=torch.channels_last)
    )


class _Settings:
    """What autograd does not differentiate by."""

    def __init__(self, norm: BatchNorm, num_real: Tensor) -> None:
        self.norm, self.num_real, self.synchronised = norm, num_real, norm.is_synchronised()

    def averages(self) -> tuple[Any, ...]:
        """The running averages, the share by which they move, and the constant that is added to the variance."""
        norm = self.norm
        return norm.running_mean, norm.running_var, 1 - norm.config.momentum, norm.config.eps


def _settings(norm: BatchNorm, x_NCHW: Tensor, num_real: Tensor | None) -> _Settings:
    if num_real is None:
        num_real = torch.full((1,), len(x_NCHW), dtype=torch.int32, device=x_NCHW.device)
    return _Settings(norm, num_real.to(torch.int32))


# --- the three functions on a GPU; every reduction below is float32 over positions, image by image ---


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, s: _Settings) -> Tensor:
        stats, rstd = _moments(x, s)
        y = torch.empty_like(x)
        _on_tiles("silu_forward", x, x, y, stats, rstd, weight, bias, stats, *_sizes(x), GATED=False)
        ctx.save_for_backward(x, weight, bias, stats, rstd, s.num_real)
        ctx.synchronised = s.synchronised
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, bias, stats, rstd, num_real = ctx.saved_tensors
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        parts = _parts_of("silu_reduce", 2, x, dy, stats, rstd, weight, bias, GATED=False)
        own, sums = _added_up(parts, ctx.synchronised)
        dx = torch.empty_like(x)
        arguments = (x, dy, dx, stats, rstd, weight, bias, stats, stats, sums, num_real, *_sizes(x))
        _on_tiles("silu_backward", x, *arguments, GATED=False)
        return dx, own[1].to(weight.dtype), own[0].to(bias.dtype), None


class _NormSiluGate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, s: _Settings
    ) -> Tensor:
        stats, rstd = _moments(x, s)
        pooled = _pooled(x, stats, rstd, weight, bias)
        with without_autocast(x.device):
            hidden = F.linear(pooled, w1.flatten(1).float(), b1.float())
            gate = F.linear(F.silu(hidden), w2.flatten(1).float(), b2.float()).sigmoid()
        y = torch.empty_like(x)
        _on_tiles("silu_forward", x, x, y, stats, rstd, weight, bias, gate, *_sizes(x), GATED=True)
        ctx.save_for_backward(x, weight, bias, w1, w2, stats, rstd, s.num_real, pooled, hidden, gate)
        ctx.synchronised = s.synchronised
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, bias, w1, w2, stats, rstd, num_real, pooled, hidden, gate = ctx.saved_tensors
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        parts = _parts_of("silu_reduce", 5, x, dy, stats, rstd, weight, bias, GATED=True)
        n, num_parts, channels = parts.shape[1:]
        dlogit, dhidden, activated = torch.empty_like(gate), torch.empty_like(hidden), torch.empty_like(hidden)
        _on_cells("gate_logit", gate, parts, gate, dlogit, n, num_parts, channels)
        with without_autocast(x.device):
            dactivated = dlogit @ w2.flatten(1).float()
            arguments = (hidden, dactivated, activated, dhidden, hidden.numel())
            _sum_kernels(x.device).gate_hidden[(-(-hidden.numel() // 256),)](*arguments, B=256)
            dpool = dhidden @ w1.flatten(1).float()
            dw1, dw2 = dhidden.T @ pooled, dlogit.T @ activated
        terms = parts.new_empty(2, n, 1, channels)
        _on_cells("gate_terms", gate, parts, gate, dpool, terms, n, num_parts, channels, _sizes(x)[0])
        own, sums = _added_up(terms, ctx.synchronised)
        dx = torch.empty_like(x)
        arguments = (x, dy, dx, stats, rstd, weight, bias, gate, dpool, sums, num_real, *_sizes(x))
        _on_tiles("silu_backward", x, *arguments, GATED=True)
        of_gate = (dw1.view_as(w1), dhidden.sum(0), dw2.view_as(w2), dlogit.sum(0))
        return dx, own[1].to(weight.dtype), own[0].to(bias.dtype), *(each.to(w1.dtype) for each in of_gate), None


class _NormAffine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor,
        add: Tensor,
        kept: Tensor,
        s: _Settings,
    ) -> Tensor:
        stats, rstd = _moments(x, s)
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        y = torch.empty_like(x)
        arguments = (x, x if residual is None else residual, y, stats, rstd, weight, bias, scale, add, kept, *_sizes(x))
        _on_tiles("affine_forward", x, *arguments, RESIDUAL=residual is not None)
        ctx.save_for_backward(x, residual, weight, bias, scale, kept, stats, rstd, s.num_real)
        ctx.synchronised = s.synchronised
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, residual, weight, bias, scale, kept, stats, rstd, num_real = ctx.saved_tensors
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        has_residual = residual is not None
        other = residual if has_residual else x
        parts = _parts_of("affine_reduce", 3 if has_residual else 2, x, other, dy, stats, rstd, RESIDUAL=has_residual)
        n, num_parts, channels = parts.shape[1:]
        dscale, dadd, terms = torch.empty_like(scale), torch.empty_like(scale), parts.new_empty(2, n, 1, channels)
        ends = (parts, weight, bias, scale, kept, dscale, dadd, terms, n, num_parts, channels)
        _on_cells("affine_ends", scale, *ends, RESIDUAL=has_residual)
        own, sums = _added_up(terms, ctx.synchronised)
        dx, dresidual = torch.empty_like(x), torch.empty_like(other)
        arguments = (x, dy, dx, dresidual, stats, rstd, weight, scale, kept, sums, num_real, *_sizes(x))
        _on_tiles("affine_backward", x, *arguments, RESIDUAL=has_residual)
        of_norm = own[1].to(weight.dtype), own[0].to(bias.dtype)
        return dx, dresidual if has_residual else None, *of_norm, dscale, dadd, None, None


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Inside, numbers keep their type."""
    known = torch.amp.is_autocast_available(device.type)  # not of the meta device
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


# --- launching ---

_TILE_P = 64
_REDUCE_P = 32  # positions of a tile that several sums are kept of
_PROGRAMS = 1024  # about as many as fill a large GPU
_CELL_N, _CELL_C = 32, 32
_ADDED_ROWS = 128


@kernel_module
def _kernels() -> Any:
    from rt_models.blocks import norm_kernels

    return norm_kernels


@kernel_module
def _sum_kernels() -> Any:
    from rt_models.blocks import norm_sum_kernels

    return norm_sum_kernels


def _sizes(x: Tensor) -> tuple[int, int]:
    """(positions of an image, channels)."""
    return x.shape[2] * x.shape[3], x.shape[1]


def _on_tiles(name: str, x: Tensor, *arguments: Any, **constants: bool) -> None:
    """One program for each tile of positions and channels of each image."""
    positions, channels = _sizes(x)
    tile = tile_c(channels)
    grid = (len(x) * -(-positions // _TILE_P), -(-channels // tile))
    kernel: Callable[..., Any] = getattr(_kernels(x.device), name)[grid]
    kernel(*arguments, **constants, BP=_TILE_P, BC=tile)


def _parts(x: Tensor, tile: int) -> int:
    """Parts that the positions of an image are split into, so that there are enough programs."""
    positions, channels = _sizes(x)
    programs = len(x) * -(-channels // tile)
    return max(1, min(-(-_PROGRAMS // programs), -(-positions // 256)))


def _parts_of(name: str, count: int, x: Tensor, *tensors: Tensor, **constants: bool) -> Tensor:
    """float32 (count, N, S, C): the kernel's sums over the positions of each image, in S parts."""
    positions, channels = _sizes(x)
    tile = tile_c(channels)
    parts = _parts(x, tile)
    out = torch.empty(count, len(x), parts, channels, dtype=torch.float32, device=x.device)
    head, tail = (2, tensors[1:]) if name == "silu_reduce" else (3, tensors[2:])
    inputs = (x, *tensors[: head - 1])
    grid = (len(x), -(-channels // tile), parts)
    kernel: Callable[..., Any] = getattr(_kernels(x.device), name)[grid]
    kernel(*inputs, out, *tail, positions, channels, -(-positions // parts), **constants, BP=_REDUCE_P, BC=tile)
    return out


def _added_up(terms: Tensor, synchronised: bool) -> tuple[Tensor, Tensor]:
    """float32 (2, C), twice: the first two terms (_, N, S, C) over images and parts of this rank, and of all ranks."""
    channels = terms.shape[-1]
    own = torch.empty(2, channels, dtype=torch.float32, device=terms.device)
    rows, tile = terms.shape[1] * terms.shape[2], 32
    _sum_kernels(terms.device).add_up[(2, -(-channels // tile))](terms, own, rows, channels, BR=_ADDED_ROWS, BC=tile)
    if not synchronised:
        return own, own
    sums = own.clone()
    dist.all_reduce(sums)
    return own, sums


def _on_cells(name: str, like: Tensor, *arguments: Any, **constants: bool) -> None:
    """One program for each tile of images and channels of `like` (N, C)."""
    n, channels = like.shape
    kernel: Callable[..., Any] = getattr(_sum_kernels(like.device), name)[(-(-n // _CELL_N), -(-channels // _CELL_C))]
    kernel(*arguments, **constants, BN=_CELL_N, BC=_CELL_C)


def _pooled(x: Tensor, stats: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """float32 (N, C): means of silu(normalised x) over positions."""
    positions, channels = _sizes(x)
    tile = tile_c(channels)
    parts = _parts(x, tile)
    out = torch.empty(len(x), parts, channels, dtype=torch.float32, device=x.device)
    grid = (len(x), -(-channels // tile), parts)
    sizes = positions, channels, -(-positions // parts)
    _kernels(x.device).silu_pool[grid](x, out, stats, rstd, weight, bias, *sizes, BP=_REDUCE_P, BC=tile)
    return out[:, 0] if parts == 1 else out.sum(1)


def _moments(x: Tensor, s: _Settings) -> tuple[Tensor, Tensor]:
    """float32 (2 C + 1,) mean, biased variance and count of numbers, over the real images of this rank or of all; and
    float32 (C,) one over the deviation. The running averages have followed."""
    positions, channels = _sizes(x)
    tile, rows = tile_c(channels), len(x) * positions
    parts = 1 << max(0, min(8, (_PROGRAMS // -(-channels // tile)).bit_length() - 1))
    partial = torch.empty(2, parts, channels, dtype=torch.float32, device=x.device)
    stats, rstd = (torch.empty(size, dtype=torch.float32, device=x.device) for size in (2 * channels + 1, channels))
    per_part = -(-rows // parts)
    kernels, columns, follows = _kernels(x.device), -(-channels // tile), s.norm.updates_averages
    kernels.sums[(parts, columns)](x, partial, s.num_real, positions, channels, per_part, BP=_TILE_P, BC=tile)
    ends = (*s.averages(), positions, channels)
    alone = follows and not s.synchronised
    kernels.moments[(columns,)](x, partial, s.num_real, stats, rstd, *ends, S=parts, FOLLOW=alone, BC=tile)
    if s.synchronised:
        ranks = dist.get_world_size()
        gathered = torch.empty(ranks * len(stats), dtype=torch.float32, device=x.device)
        dist.all_gather_into_tensor(gathered, stats)
        ends = (*s.averages(), ranks, channels)
        kernels.over_ranks[(columns,)](gathered, stats, rstd, *ends, FOLLOW=follows, BC=tile)
    return stats, rstd
