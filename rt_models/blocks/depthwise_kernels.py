"""Triton kernels for depthwise convolutions of images in channels_last: forward, and the gradients of both inputs.

A tensor (N, C, H, W) in channels_last is read as N x H x W rows of C numbers. A program computes a tile of rows and
columns of some channels of one image, so that the pixels that neighbouring results share are read from the cache.
Weights are float32 (K, K, C), and so are sums. A result at (h, w) reads the pixels (S h - top + i, S w - left + j),
zero outside the image. Channels are given as groups of V, from which Triton knows that it may load V at once.
`depthwise.py` launches the kernels.

Axes: N images, C channels, H and W rows and columns, K the kernel's, S its stride.
"""

# pyright: reportGeneralTypeIssues=false
# Where Triton is installed, its types say that a function of a kernel never returns.

from __future__ import annotations

import triton
import triton.language as tl

SIZES = ["H", "W", "OH", "OW", "top", "left", "tile_h", "tile_w", "tiles", "tiles_per_part"]
"""Integers that Triton must not specialise on: it would compile a further variant for a 1 and for multiples of
16, and these change with the batch. On the number of channels it does: how far loads are aligned follows from that."""


@triton.jit
def _pixels(tile, H, W, tile_h, tile_w, BP: tl.constexpr):
    """(image, row, column, mask) of BP pixels: those of one of the tiles of tile_h x tile_w that cover the images."""
    across = tl.cdiv(W, tile_w)
    per_image = tl.cdiv(H, tile_h) * across
    image, place = tile // per_image, tile % per_image
    p = tl.arange(0, BP)
    row = place // across * tile_h + p // tile_w
    column = place % across * tile_w + p % tile_w
    return image.to(tl.int64), row, column, (p < tile_h * tile_w) & (row < H) & (column < W)


@triton.jit
def _offsets(row, column, c, W, C):
    return (row * W + column)[:, None] * C + c[None, :]


@triton.jit(do_not_specialize=SIZES)
def depthwise_forward(
    x, weight, bias, y, groups, H, W, OH, OW, top, left, tile_h, tile_w,
    BIAS: tl.constexpr, K: tl.constexpr, S: tl.constexpr, V: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y (N, OH, OW, C) = x (N, H, W, C) convolved with weight, and with BIAS bias (C,) added."""
    C = groups * V
    image, row, column, mask = _pixels(tl.program_id(0), OH, OW, tile_h, tile_w, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    in_c = c < C
    h, w = row * S - top, column * S - left
    first = x + image * H * W * C + _offsets(h, w, c, W, C)
    total = tl.zeros((BP, BC), tl.float32)
    if BIAS:
        total += tl.load(bias + c, mask=in_c, other=0).to(tl.float32)[None, :]
    for i in tl.range(K, loop_unroll_factor=1):
        in_row = mask & (h + i >= 0) & (h + i < H)
        for j in tl.static_range(K):
            inside = in_row & (w + j >= 0) & (w + j < W)
            pixel = tl.load(first + (i * W + j) * C, mask=inside[:, None] & in_c[None, :], other=0)
            factor = tl.load(weight + (i * K + j) * C + c, mask=in_c, other=0)
            total += pixel.to(tl.float32) * factor[None, :]
    place = y + image * OH * OW * C + _offsets(row, column, c, OW, C)
    tl.store(place, total.to(y.dtype.element_ty), mask=mask[:, None] & in_c[None, :])


@triton.jit(do_not_specialize=SIZES)
def depthwise_backward_image(
    dy, weight, dx, groups, H, W, OH, OW, top, left, tile_h, tile_w,
    K: tl.constexpr, S: tl.constexpr, V: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dx (N, H, W, C): each pixel collects dy from the results that it went into."""
    C = groups * V
    image, row, column, mask = _pixels(tl.program_id(0), H, W, tile_h, tile_w, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    in_c = c < C
    # Tap i, j is of the result (row + top - i, column + left - j) / S. Where S is 2, the i that divide evenly are
    # every other one, and (row + top - i) / S goes down by one from each to the next.
    h, w = row + top, column + left
    first = dy + image * OH * OW * C + _offsets(h // S, w // S, c, OW, C)
    total = tl.zeros((BP, BC), tl.float32)
    for i in tl.range((K + S - 1) // S, loop_unroll_factor=1):
        in_row = mask & (h // S - i >= 0) & (h // S - i < OH)
        for j in tl.static_range((K + S - 1) // S):
            tap_i, tap_j = h % S + S * i, w % S + S * j
            inside = in_row & (w // S - j >= 0) & (w // S - j < OW)
            if K % S > 0:
                inside = inside & (tap_i < K) & (tap_j < K)
            slope = tl.load(first - (i * OW + j) * C, mask=inside[:, None] & in_c[None, :], other=0)
            if S == 1:
                factor = tl.load(weight + (i * K + j) * C + c, mask=in_c, other=0)[None, :]
            else:  # neighbouring pixels meet other weights
                mine = weight + (tap_i * K + tap_j)[:, None] * C + c[None, :]
                factor = tl.load(mine, mask=inside[:, None] & in_c[None, :], other=0)
            total += slope.to(tl.float32) * factor
    place = dx + image * H * W * C + _offsets(row, column, c, W, C)
    tl.store(place, total.to(dx.dtype.element_ty), mask=mask[:, None] & in_c[None, :])


@triton.jit(do_not_specialize=SIZES)
def depthwise_backward_weight(
    x, dy, partial, groups, H, W, OH, OW, top, left, tile_h, tile_w, tiles, tiles_per_part,
    K: tl.constexpr, S: tl.constexpr, V: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """partial (parts, C, K, K): sums of dy times the pixel that each weight met, part by part of the tiles.

    A program takes one row i of the weights: all at once would need more registers than there are.
    """
    C = groups * V
    part, i = tl.program_id(0) // K, tl.program_id(0) % K
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    in_c = c < C
    sums = ()
    for _ in tl.static_range(K):
        sums = sums + (tl.zeros((BP, BC), tl.float32),)  # noqa: RUF005 (Triton knows no star)
    for tile in range(part * tiles_per_part, tl.minimum((part + 1) * tiles_per_part, tiles)):
        image, row, column, mask = _pixels(tile, OH, OW, tile_h, tile_w, BP)
        h, w = row * S - top + i, column * S - left
        mask = mask & (h >= 0) & (h < H)
        place = dy + image * OH * OW * C + _offsets(row, column, c, OW, C)
        slope = tl.load(place, mask=mask[:, None] & in_c[None, :], other=0).to(tl.float32)
        first = x + image * H * W * C + _offsets(h, w, c, W, C)
        new = ()
        for j in tl.static_range(K):
            inside = mask & (w + j >= 0) & (w + j < W)
            pixel = tl.load(first + j * C, mask=inside[:, None] & in_c[None, :], other=0)
            new = new + (sums[j] + slope * pixel.to(tl.float32),)  # noqa: RUF005
        sums = new
    for j in tl.static_range(K):
        tl.store(partial + (part * C + c) * (K * K) + i * K + j, tl.sum(sums[j], 0), mask=in_c)
