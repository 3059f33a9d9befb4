"""Triton kernels between the reductions of `norm_kernels.py` and their use, on numbers of images and channels.

`parts` are what those reductions leave, (sums, N, S, C): of each image in S parts. All numbers are float32.

Axes: N images, P positions of an image, C channels, S parts that a sum is split into.
"""

# pyright: reportGeneralTypeIssues=false
# Where Triton is installed, its types say that a function of a kernel never returns.

from __future__ import annotations

import triton
import triton.language as tl

SIZES = ["N", "S", "P", "rows", "size"]
"""Integers that Triton must not specialise on: it would compile a further variant for a 1 and for multiples of
16, and these change with the batch. On the number of channels it does: how far loads are aligned follows from that."""


@triton.jit
def _cell(N, C, BN: tl.constexpr, BC: tl.constexpr):
    """(images, channels, mask) of a tile of BN images x BC channels."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    return n, c, (n < N)[:, None] & (c < C)[None, :]


@triton.jit
def _summed(parts, number, n, c, mask, N, S, C, BN: tl.constexpr, BC: tl.constexpr):
    """The sum `number` of a tile over its S parts."""
    total = tl.zeros((BN, BC), tl.float32)
    for part in range(S):
        place = ((number * N + n) * S + part)[:, None] * C + c[None, :]
        total += tl.load(parts + place, mask=mask, other=0.0)
    return total


@triton.jit(do_not_specialize=SIZES)
def add_up(terms, sums, rows, C, BR: tl.constexpr, BC: tl.constexpr):
    """sums (2, C): terms (2, rows, C) over rows; of more than two terms the first two."""
    number, c = tl.program_id(0), tl.program_id(1) * BC + tl.arange(0, BC)
    total = tl.zeros((BR, BC), tl.float32)
    for begin in range(0, rows, BR):
        r = begin + tl.arange(0, BR)
        mask = (r < rows)[:, None] & (c < C)[None, :]
        total += tl.load(terms + (number * rows + r)[:, None] * C + c[None, :], mask=mask, other=0.0)
    tl.store(sums + number * C + c, tl.sum(total, 0), mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def gate_logit(parts, gate, dlogit, N, S, C, BN: tl.constexpr, BC: tl.constexpr):
    """dlogit (N, C): the gradient of the gate, the reduction's third sum, before its sigmoid."""
    n, c, mask = _cell(N, C, BN, BC)
    value = tl.load(gate + n[:, None] * C + c[None, :], mask=mask, other=0.0)
    slope = _summed(parts, 2, n, c, mask, N, S, C, BN, BC) * value * (1 - value)
    tl.store(dlogit + n[:, None] * C + c[None, :], slope, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def gate_hidden(hidden, dactivated, activated, dhidden, size, B: tl.constexpr):
    """activated = silu(hidden), and the gradient of hidden."""
    place = tl.program_id(0) * B + tl.arange(0, B)
    mask = place < size
    h = tl.load(hidden + place, mask=mask, other=0.0)
    sigmoid = tl.sigmoid(h)
    slope = sigmoid * (1 + h * (1 - sigmoid))
    tl.store(activated + place, h * sigmoid, mask=mask)
    tl.store(dhidden + place, tl.load(dactivated + place, mask=mask, other=0.0) * slope, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def gate_terms(parts, gate, dpool, terms, N, S, C, P, BN: tl.constexpr, BC: tl.constexpr):
    """terms (2, N, C): each image's sums of dz and of dz normal, dz = silu' (dy gate + dpool / P)."""
    n, c, mask = _cell(N, C, BN, BC)
    place = n[:, None] * C + c[None, :]
    g = tl.load(gate + place, mask=mask, other=0.0)
    d = tl.load(dpool + place, mask=mask, other=0.0) / P
    first = _summed(parts, 0, n, c, mask, N, S, C, BN, BC) * g + _summed(parts, 3, n, c, mask, N, S, C, BN, BC) * d
    second = _summed(parts, 1, n, c, mask, N, S, C, BN, BC) * g + _summed(parts, 4, n, c, mask, N, S, C, BN, BC) * d
    tl.store(terms + place, first, mask=mask)
    tl.store(terms + N * C + place, second, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def affine_ends(
    parts, weight, bias, scale, kept, dscale, dadd, terms, N, S, C,
    RESIDUAL: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dscale and dadd (N, C), and terms (2, N, C): each image's sums of dz and of dz normal, dz = kept dy scale."""
    n, c, mask = _cell(N, C, BN, BC)
    place = n[:, None] * C + c[None, :]
    k = tl.load(kept + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    w = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    dy = _summed(parts, 0, n, c, mask, N, S, C, BN, BC)
    dy_n = _summed(parts, 1, n, c, mask, N, S, C, BN, BC)
    slope = k * (dy_n * w + dy * b)
    if RESIDUAL:
        slope += _summed(parts, 2, n, c, mask, N, S, C, BN, BC)
    factor = k * tl.load(scale + place, mask=mask, other=0.0)
    tl.store(dscale + place, slope, mask=mask)
    tl.store(dadd + place, dy, mask=mask)
    tl.store(terms + place, factor * dy, mask=mask)
    tl.store(terms + N * C + place, factor * dy_n, mask=mask)
