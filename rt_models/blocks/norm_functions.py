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

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from rt_models.blocks.batch_norm import BatchNorm


def norm_silu(norm: nn.Module, x_NCHW: Tensor, num_real: Tensor | None = None) -> Tensor:
    """float (N, C, H, W)"""
    if not isinstance(norm, BatchNorm) or not uses_kernels(norm, x_NCHW):
        return silu(norm(x_NCHW, num_real))
    y_NCHW, *found = _NormSilu.apply(x_NCHW, norm.weight, norm.bias, _settings(norm, x_NCHW, num_real))
    norm.follow(*found)
    return y_NCHW


def norm_silu_gate(
    norm: nn.Module, reduce: nn.Conv2d, expand: nn.Conv2d, x_NCHW: Tensor, num_real: Tensor | None = None
) -> Tensor:
    """float (N, C, H, W): `reduce` and `expand` are squeeze-excite's 1x1 convolutions of the pooled features."""
    if not isinstance(norm, BatchNorm) or not uses_kernels(norm, x_NCHW):
        y_NCHW = silu(norm(x_NCHW, num_real))
        gate_NC = expand(silu(reduce(y_NCHW.mean((2, 3))))).sigmoid()
        return y_NCHW * gate_NC[:, :, None, None]
    weights = (reduce.weight, reduce.bias, expand.weight, expand.bias)
    settings = _settings(norm, x_NCHW, num_real)
    y_NCHW, *found = _NormSiluGate.apply(x_NCHW, norm.weight, norm.bias, *weights, settings)
    norm.follow(*found)
    return y_NCHW


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
        return torch.addcmul(add_NC[:, :, None, None], y_NCHW, scale_NC[:, :, None, None])
    settings = _settings(norm, x_NCHW, num_real)
    n, c = x_NCHW.shape[:2]
    kept = x_NCHW.new_ones(n, dtype=torch.float32) if kept_N is None else kept_N.float()
    scale = x_NCHW.new_ones(n, c, dtype=torch.float32) if scale_NC is None else scale_NC.float()
    add = x_NCHW.new_zeros(n, c, dtype=torch.float32) if add_NC is None else add_NC.float()
    y_NCHW, *found = _NormAffine.apply(x_NCHW, residual_NCHW, norm.weight, norm.bias, scale, add, kept, settings)
    norm.follow(*found)
    return y_NCHW


def silu(x: Tensor) -> Tensor:
    """F.silu, in place if no gradient is asked for: no caller here uses `x` again."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def uses_kernels(norm: BatchNorm, x_NCHW: Tensor) -> bool:
    """Whether the Triton kernels take this: training with statistics of the batch, on a GPU, in channels_last."""
    return (
        norm.training
        and not torch.compiler.is_compiling()
        and norm.config.statistics != "frozen"
        and x_NCHW.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and norm.weight.numel() == x_NCHW.shape[1]  # not in pieces on other ranks, as under ZeRO-3
        and runs_kernels(x_NCHW.device)
        and x_NCHW.is_contiguous(memory_format=torch.channels_last)
    )


def runs_kernels(device: torch.device) -> bool:
    """Whether Triton compiles for this device."""
    return device.type == "cuda" and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


class _Settings:
    """What is no tensor to differentiate by, and the sums over ranks."""

    def __init__(self, eps: float, num_real: Tensor, synchronised: bool) -> None:
        self.eps, self.num_real, self.synchronised = eps, num_real, synchronised


def _settings(norm: BatchNorm, x_NCHW: Tensor, num_real: Tensor | None) -> _Settings:
    if num_real is None:
        num_real = torch.full((1,), len(x_NCHW), dtype=torch.int32, device=x_NCHW.device)
    return _Settings(norm.config.eps, num_real.to(torch.int32), norm.is_synchronised())


# --- the three functions on a GPU; every `sums` below is float32 over positions, image by image ---


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, s: _Settings) -> tuple[Tensor, ...]:
        mean, var, count = _moments(x, s)
        rstd = torch.rsqrt(var + s.eps)
        y = torch.empty_like(x)
        _on_tiles("silu_forward", x, x, y, mean, rstd, weight, bias, mean, *_sizes(x), GATED=False)
        ctx.save_for_backward(x, weight, bias, mean, rstd, count, s.num_real)
        ctx.synchronised = s.synchronised
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, bias, mean, rstd, count, num_real = ctx.saved_tensors
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        parts = _sums("silu_reduce", 2, x, dy, mean, rstd, weight, bias, GATED=False)
        dz, dzn = parts.sum(1)
        m0, m1 = _means(dz, dzn, count, ctx.synchronised)
        dx = torch.empty_like(x)
        arguments = (x, dy, dx, mean, rstd, weight, bias, mean, mean, m0, m1, num_real, *_sizes(x))
        _on_tiles("silu_backward", x, *arguments, GATED=False)
        return dx, dzn.to(weight.dtype), dz.to(bias.dtype), None


class _NormSiluGate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, s: _Settings
    ) -> tuple[Tensor, ...]:
        mean, var, count = _moments(x, s)
        rstd = torch.rsqrt(var + s.eps)
        pooled = _pooled(x, mean, rstd, weight, bias)
        with torch.autocast(x.device.type, enabled=False):
            hidden = F.linear(pooled, w1.flatten(1).float(), b1.float())
            gate = F.linear(F.silu(hidden), w2.flatten(1).float(), b2.float()).sigmoid()
        y = torch.empty_like(x)
        _on_tiles("silu_forward", x, x, y, mean, rstd, weight, bias, gate, *_sizes(x), GATED=True)
        ctx.save_for_backward(x, weight, bias, w1, w2, mean, rstd, count, s.num_real, pooled, hidden, gate)
        ctx.synchronised = s.synchronised
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, bias, w1, w2, mean, rstd, count, num_real, pooled, hidden, gate = ctx.saved_tensors
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        positions = x.shape[2] * x.shape[3]
        slope_dy, slope_dy_n, dgate, slope, slope_n = _sums(
            "silu_reduce", 5, x, dy, mean, rstd, weight, bias, GATED=True
        )
        with torch.autocast(x.device.type, enabled=False):
            dlogit = dgate * gate * (1 - gate)
            sigmoid = hidden.sigmoid()
            activated = hidden * sigmoid
            dhidden = (dlogit @ w2.flatten(1).float()) * sigmoid * (1 + hidden * (1 - sigmoid))
            dpool = (dhidden @ w1.flatten(1).float()) / positions
            gradients_of_gate = (dhidden.T @ pooled, dhidden.sum(0), dlogit.T @ activated, dlogit.sum(0))
        dz = (slope_dy * gate + slope * dpool).sum(0)
        dzn = (slope_dy_n * gate + slope_n * dpool).sum(0)
        m0, m1 = _means(dz, dzn, count, ctx.synchronised)
        dx = torch.empty_like(x)
        arguments = (x, dy, dx, mean, rstd, weight, bias, gate, dpool, m0, m1, num_real, *_sizes(x))
        _on_tiles("silu_backward", x, *arguments, GATED=True)
        dw1, db1, dw2, db2 = gradients_of_gate
        of_gate = (dw1.view_as(w1).to(w1.dtype), db1.to(w1.dtype), dw2.view_as(w2).to(w2.dtype), db2.to(w2.dtype))
        return dx, dzn.to(weight.dtype), dz.to(bias.dtype), *of_gate, None


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
    ) -> tuple[Tensor, ...]:
        mean, var, count = _moments(x, s)
        rstd = torch.rsqrt(var + s.eps)
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        y = torch.empty_like(x)
        arguments = (x, x if residual is None else residual, y, mean, rstd, weight, bias, scale, add, kept, *_sizes(x))
        _on_tiles("affine_forward", x, *arguments, RESIDUAL=residual is not None)
        ctx.save_for_backward(x, residual, weight, bias, scale, kept, mean, rstd, count, s.num_real)
        ctx.synchronised = s.synchronised
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, residual, weight, bias, scale, kept, mean, rstd, count, num_real = ctx.saved_tensors
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        has_residual = residual is not None
        other = residual if has_residual else x
        parts = _sums("affine_reduce", 3 if has_residual else 2, x, other, dy, mean, rstd, RESIDUAL=has_residual)
        dadd, dy_n = parts[0], parts[1]
        kept_N1 = kept[:, None]
        dscale = kept_N1 * (dy_n * weight + dadd * bias)
        if has_residual:
            dscale = dscale + parts[2]
        factor = kept_N1 * scale
        dz, dzn = (factor * dadd).sum(0), (factor * dy_n).sum(0)
        m0, m1 = _means(dz, dzn, count, ctx.synchronised)
        dx, dresidual = torch.empty_like(x), torch.empty_like(other)
        arguments = (x, dy, dx, dresidual, mean, rstd, weight, scale, kept, m0, m1, num_real, *_sizes(x))
        _on_tiles("affine_backward", x, *arguments, RESIDUAL=has_residual)
        ends = (dzn.to(weight.dtype), dz.to(bias.dtype), dscale, dadd, None, None)
        return dx, dresidual if has_residual else None, *ends


# --- launching ---

_TILE_P, _TILE_C = 64, 64
_REDUCE_P = 32  # positions of a tile that several sums are kept of
_PROGRAMS = 1024  # about as many as fill a large GPU


def _kernels() -> Any:
    from rt_models.blocks import norm_kernels

    return norm_kernels


def _sizes(x: Tensor) -> tuple[int, int]:
    """(positions of an image, channels)."""
    return x.shape[2] * x.shape[3], x.shape[1]


def tile_c(channels: int) -> int:
    """Channels of a tile: a power of two."""
    return min(_TILE_C, max(16, 1 << (channels - 1).bit_length()))


def _on_tiles(name: str, x: Tensor, *arguments: Any, **constants: bool) -> None:
    """One program for each tile of positions and channels of each image."""
    positions, channels = _sizes(x)
    tile = tile_c(channels)
    grid = (len(x) * -(-positions // _TILE_P), -(-channels // tile))
    kernel: Callable[..., Any] = getattr(_kernels(), name)[grid]
    kernel(*arguments, **constants, BP=_TILE_P, BC=tile)


def _parts(x: Tensor, tile: int) -> int:
    """Parts that the positions of an image are split into, so that there are enough programs."""
    positions, channels = _sizes(x)
    programs = len(x) * -(-channels // tile)
    return max(1, min(-(-_PROGRAMS // programs), -(-positions // 256)))


def _sums(name: str, count: int, x: Tensor, *tensors: Tensor, **constants: bool) -> Tensor:
    """float32 (count, N, C): the kernel's sums over the positions of each image."""
    positions, channels = _sizes(x)
    tile = tile_c(channels)
    parts = _parts(x, tile)
    out = torch.empty(count, len(x), parts, channels, dtype=torch.float32, device=x.device)
    head, tail = (2, tensors[1:]) if name == "silu_reduce" else (3, tensors[2:])
    inputs = (x, *tensors[: head - 1])
    grid = (len(x), -(-channels // tile), parts)
    kernel: Callable[..., Any] = getattr(_kernels(), name)[grid]
    kernel(*inputs, out, *tail, positions, channels, -(-positions // parts), **constants, BP=_REDUCE_P, BC=tile)
    return out[:, :, 0] if parts == 1 else out.sum(2)


def _pooled(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """float32 (N, C): means of silu(normalised x) over positions."""
    positions, channels = _sizes(x)
    tile = tile_c(channels)
    parts = _parts(x, tile)
    out = torch.empty(len(x), parts, channels, dtype=torch.float32, device=x.device)
    grid = (len(x), -(-channels // tile), parts)
    length = -(-positions // parts)
    _kernels().silu_pool[grid](x, out, mean, rstd, weight, bias, positions, channels, length, BP=_REDUCE_P, BC=tile)
    return out.sum(1) / positions


def _moments(x: Tensor, s: _Settings) -> tuple[Tensor, ...]:
    """(mean, biased variance, count of numbers), float32, over the real images of this rank or of all."""
    positions, channels = _sizes(x)
    tile, rows = tile_c(channels), len(x) * positions
    parts = 1 << max(0, min(8, (_PROGRAMS // -(-channels // tile)).bit_length() - 1))
    partial = torch.empty(2, parts, channels, dtype=torch.float32, device=x.device)
    mean, var = (torch.empty(channels, dtype=torch.float32, device=x.device) for _ in range(2))
    per_part = -(-rows // parts)
    kernels, columns = _kernels(), -(-channels // tile)
    kernels.sums[(parts, columns)](x, partial, s.num_real, positions, channels, per_part, BP=_TILE_P, BC=tile)
    kernels.moments[(columns,)](x, partial, s.num_real, mean, var, positions, channels, S=parts, BC=tile)
    count = s.num_real.to(torch.float32) * positions
    return _over_ranks(mean, var, count) if s.synchronised else (mean, var, count)


def _over_ranks(mean: Tensor, var: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mine = torch.cat([count, mean, var])
    of_ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(of_ranks, mine)
    stacked = torch.stack(of_ranks)
    count_R1, mean_RC, var_RC = stacked[:, :1], *stacked[:, 1:].chunk(2, dim=1)
    total = count_R1.sum(0)
    counted = total.clamp(min=1)  # of a camera that no rank has a picture of
    joint = (count_R1 * mean_RC).sum(0) / counted
    return joint, (count_R1 * (var_RC + (mean_RC - joint).square())).sum(0) / counted, total


def _means(dz: Tensor, dzn: Tensor, count: Tensor, synchronised: bool) -> tuple[Tensor, Tensor]:
    """Means over all counted numbers, of all ranks if they are synchronised."""
    both = torch.stack([dz, dzn])
    if synchronised:
        dist.all_reduce(both)
    first, second = both / count.clamp(min=1)
    return first, second
