"""A depthwise convolution on a GPU in Triton kernels of ours (`depthwise_kernels.py`), with its gradients.

In channels_last cuDNN takes most of a second for each number of images that a depthwise convolution has not seen, and
runs it far below the rate of the memory (docs/measured.md). Sums are float32 under autocast too, weights are not cast.

Axes: N images, C channels, H and W rows and columns, K the kernel's.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rt_models.blocks.triton_kernels import kernel_module, runs_kernels, tile_c

DepthwiseKernels = Literal["auto", "cudnn"]

_TILE_P, _WARPS = 64, 8
_WEIGHT_P, _WEIGHT_WARPS = 32, 4  # of the weights' gradient, which keeps K sums of each number of a tile
_WEIGHT_PROGRAMS = 2048  # about as many as fill a large GPU


@dataclass(frozen=True, kw_only=True)
class ConvGeometry:
    """Where a convolution's results lie on its image."""

    kernel: int
    """Rows and columns of the kernel."""
    stride: int
    """Pixels from one result to the next."""
    top: int
    """Rows of zeros before the image."""
    left: int
    """Columns of zeros before the image."""
    height: int
    """Rows of results."""
    width: int
    """Columns of results."""


def uses_kernels(x_NCHW: Tensor) -> bool:
    """Whether the kernels take this: on a GPU and in channels_last."""
    return (
        runs_kernels(x_NCHW.device)
        and x_NCHW.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and x_NCHW.is_contiguous(memory_format=torch.channels_last)
    )


def depthwise(x_NCHW: Tensor, weight_CIKK: Tensor, bias_C: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """(N, C, height, width) in channels_last and in x's type, or in autocast's where it is on."""
    kind = x_NCHW.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        x_NCHW = x_NCHW.to(torch.get_autocast_dtype(kind))
    return _Depthwise.apply(x_NCHW, weight_CIKK, bias_C, geometry)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
        by_channel = weight.detach().flatten(1).t().float().contiguous()  # (K K, C)
        y = _like(x, geometry.height, geometry.width)
        tile_h, tile_w = tile(geometry.height, geometry.width, _TILE_P)
        kernel = _kernels(x.device).depthwise_forward[_grid(y, tile_h, tile_w)]
        given = (x, by_channel, by_channel if bias is None else bias, y)
        kernel(*given, *_sizes(x, geometry), tile_h, tile_w, BIAS=bias is not None, **_constants(x, geometry))
        ctx.save_for_backward(x, by_channel)
        ctx.geometry, ctx.weight = geometry, (weight.shape, weight.dtype)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x, by_channel), geometry = ctx.saved_tensors, ctx.geometry
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            tile_h, tile_w = tile(x.shape[2], x.shape[3], _TILE_P)
            kernel = _kernels(x.device).depthwise_backward_image[_grid(x, tile_h, tile_w)]
            kernel(dy, by_channel, dx, *_sizes(x, geometry), tile_h, tile_w, **_constants(x, geometry))
        if ctx.needs_input_grad[1]:
            shape, dtype = ctx.weight
            dweight = _dweight(x, dy, geometry).view(shape).to(dtype)
        if ctx.needs_input_grad[2]:
            dbias = dy.sum((0, 2, 3), dtype=torch.float32).to(ctx.weight[1])
        return dx, dweight, dbias, None


def _dweight(x: Tensor, dy: Tensor, geometry: ConvGeometry) -> Tensor:
    """float32 (C, K, K)"""
    tile_h, tile_w = tile(geometry.height, geometry.width, _WEIGHT_P)
    tiles, blocks = _grid(dy, tile_h, tile_w)
    wanted = max(1, _WEIGHT_PROGRAMS // (blocks * geometry.kernel))
    tiles_per_part = -(-tiles // wanted)
    parts = -(-tiles // tiles_per_part)
    shape = (parts, x.shape[1], geometry.kernel, geometry.kernel)
    partial = torch.empty(shape, dtype=torch.float32, device=x.device)
    constants = _constants(x, geometry) | {"BP": _WEIGHT_P, "num_warps": _WEIGHT_WARPS}
    sizes = (*_sizes(x, geometry), tile_h, tile_w, tiles, tiles_per_part)
    _kernels(x.device).depthwise_backward_weight[(parts * geometry.kernel, blocks)](x, dy, partial, *sizes, **constants)
    return partial.sum(0)


@functools.cache
def tile(height: int, width: int, pixels: int) -> tuple[int, int]:
    """(rows, columns) of the tiles, of `pixels` at most, that cover an image with the least computed and read.

    A tile computes `pixels` results, also beyond the image, and reads a row and a column more on all sides.
    """

    def work(size: tuple[int, int]) -> int:
        rows, columns = size
        return -(-height // rows) * -(-width // columns) * (pixels + (rows + 2) * (columns + 2))

    return min(((min(pixels // columns, height), columns) for columns in range(1, min(width, pixels) + 1)), key=work)


@kernel_module
def _kernels() -> Any:
    from rt_models.blocks import depthwise_kernels

    return depthwise_kernels


def _like(x: Tensor, height: int, width: int) -> Tensor:
    shape = (*x.shape[:2], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _sizes(x: Tensor, geometry: ConvGeometry) -> tuple[int, ...]:
    channels, height, width = x.shape[1:]
    return channels // _vector(x), height, width, geometry.height, geometry.width, geometry.top, geometry.left


def _constants(x: Tensor, geometry: ConvGeometry) -> dict[str, int]:
    size = {"K": geometry.kernel, "S": geometry.stride, "V": _vector(x)}
    return size | {"BP": _TILE_P, "BC": tile_c(x.shape[1]), "num_warps": _WARPS}


def _vector(x: Tensor) -> int:
    """Channels that are loaded at once: 16 bytes in bf16."""
    return 8 if x.shape[1] % 8 == 0 else 1


def _grid(images: Tensor, tile_h: int, tile_w: int) -> tuple[int, int]:
    """One program for each tile of each image, and each block of channels."""
    n, channels, height, width = images.shape
    return n * -(-height // tile_h) * -(-width // tile_w), -(-channels // tile_c(channels))
