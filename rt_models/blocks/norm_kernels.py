"""Triton kernels for batch normalisation with what follows it, on activations in channels_last.

A tensor (N, C, H, W) in channels_last is read as rows of C numbers: N images of P = H x W rows. Only the first
`num_real` images count in the statistics; the others pad the batch to a fixed shape, and their gradients are zero.
Statistics and sums are float32. `norm_functions.py` says what each kernel computes and calls them.

Axes: N images, P positions of an image, C channels, S parts that a sum is split into.
"""

# pyright: reportGeneralTypeIssues=false
# Where Triton is installed, its types say that a function of a kernel never returns.

from __future__ import annotations

import triton
import triton.language as tl

SIZES = ["P", "length", "rows_per_part"]
"""Integers that Triton must not specialise on: it would compile a further variant for a 1 and for multiples of
16, and these change with the batch. On the number of channels it does: how far loads are aligned follows from that."""


@triton.jit
def _tile(pid, P, C, BP: tl.constexpr, BC: tl.constexpr):
    """(image, offsets of a tile of BP positions x BC channels from the image's first number, channels, mask)."""
    parts = tl.cdiv(P, BP)
    image = pid // parts
    p = (pid % parts) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (p < P)[:, None] & (c < C)[None, :]
    return image, image.to(tl.int64) * P * C + p[:, None] * C + c[None, :], c, mask


@triton.jit(do_not_specialize=SIZES)
def sums(x, partial, num_real, P, C, rows_per_part, BP: tl.constexpr, BC: tl.constexpr):
    """partial (2, S, C): sums of x - x[0] and of its square over the rows of real images, part by part."""
    part, parts = tl.program_id(0), tl.num_programs(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    in_c = c < C
    shift = tl.load(x + c, mask=in_c, other=0.0).to(tl.float32)
    begin = part.to(tl.int64) * rows_per_part
    end = tl.minimum(begin + rows_per_part, tl.load(num_real).to(tl.int64) * P)
    total = tl.zeros((BP, BC), tl.float32)
    square = tl.zeros((BP, BC), tl.float32)
    for step in range(0, rows_per_part, BP):
        rows = begin + step + tl.arange(0, BP)
        mask = (rows < end)[:, None] & in_c[None, :]
        value = tl.load(x + rows[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
        centred = tl.where(mask, value - shift[None, :], 0.0)
        total += centred
        square += centred * centred
    tl.store(partial + part * C + c, tl.sum(total, 0), mask=in_c)
    tl.store(partial + (parts + part) * C + c, tl.sum(square, 0), mask=in_c)


@triton.jit
def _keep(
    mean, var, count, c, in_c, stats, rstd, running_mean, running_var, share, eps, C, FOLLOW: tl.constexpr
):  # fmt: skip
    """Stores the statistics of some channels, and with FOLLOW moves the running averages by `share` towards them, where
    they are finite and of something: a batch may have no picture of a camera."""
    tl.store(stats + c, mean, mask=in_c)
    tl.store(stats + C + c, var, mask=in_c)
    tl.store(stats + 2 * C, count)
    tl.store(rstd + c, 1 / tl.sqrt(var + eps), mask=in_c)
    if FOLLOW:
        share = tl.where(count > 0, share, 0.0)
        follows = in_c & (mean > -1e38) & (mean < 1e38) & (var < 1e38)
        before = tl.load(running_mean + c, mask=follows)
        tl.store(running_mean + c, before + share * (mean - before), mask=follows)
        before = tl.load(running_var + c, mask=follows)
        tl.store(running_var + c, before + share * (var - before), mask=follows)


@triton.jit(do_not_specialize=SIZES)
def moments(
    x, partial, num_real, stats, rstd, running_mean, running_var, share, eps, P, C,
    S: tl.constexpr, FOLLOW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """stats (2 C + 1,): mean, biased variance and count of numbers from the partial sums; rstd (C,)."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    in_c = c < C
    count = tl.load(num_real).to(tl.float32) * P
    divisor = tl.maximum(count, 1.0)
    parts = tl.arange(0, S)[:, None] * C + c[None, :]
    total = tl.sum(tl.load(partial + parts, mask=in_c[None, :], other=0.0), 0) / divisor
    square = tl.sum(tl.load(partial + S * C + parts, mask=in_c[None, :], other=0.0), 0) / divisor
    mean = total + tl.load(x + c, mask=in_c, other=0.0).to(tl.float32)
    var = tl.maximum(square - total * total, 0.0)
    _keep(mean, var, count, c, in_c, stats, rstd, running_mean, running_var, share, eps, C, FOLLOW)


@triton.jit(do_not_specialize=SIZES)
def over_ranks(
    gathered, stats, rstd, running_mean, running_var, share, eps, R, C, FOLLOW: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """The same of all ranks together, from each rank's `stats` in gathered (R, 2 C + 1)."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    in_c = c < C
    count = 0.0
    mean = tl.zeros((BC,), tl.float32)
    for rank in range(R):
        mine = gathered + rank * (2 * C + 1)
        of_rank = tl.load(mine + 2 * C)
        count += of_rank
        mean += of_rank * tl.load(mine + c, mask=in_c, other=0.0)
    divisor = tl.maximum(count, 1.0)
    mean /= divisor
    var = tl.zeros((BC,), tl.float32)
    for rank in range(R):
        mine = gathered + rank * (2 * C + 1)
        away = tl.load(mine + c, mask=in_c, other=0.0) - mean
        var += tl.load(mine + 2 * C) * (tl.load(mine + C + c, mask=in_c, other=0.0) + away * away)
    var /= divisor
    _keep(mean, var, count, c, in_c, stats, rstd, running_mean, running_var, share, eps, C, FOLLOW)


@triton.jit
def _normal(x, offsets, c, mask, mean, rstd, C):
    """The normalised values of a tile, float32."""
    value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    m = tl.load(mean + c, mask=c < C, other=0.0)
    r = tl.load(rstd + c, mask=c < C, other=0.0)
    return (value - m[None, :]) * r[None, :], r


@triton.jit
def _means(sums, stats, c, C):
    """Of dz and of dz normal over all numbers that count."""
    count = tl.maximum(tl.load(stats + 2 * C), 1.0)
    first = tl.load(sums + c, mask=c < C, other=0.0)
    second = tl.load(sums + C + c, mask=c < C, other=0.0)
    return first / count, second / count


@triton.jit(do_not_specialize=SIZES)
def silu_forward(x, y, mean, rstd, weight, bias, gate, P, C, GATED: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """y = silu(normal x weight + bias), times gate (N, C)."""
    image, offsets, c, mask = _tile(tl.program_id(0), P, C, BP, BC)
    normal, _ = _normal(x, offsets, c, mask, mean, rstd, C)
    w = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    z = normal * w[None, :] + b[None, :]
    value = z * tl.sigmoid(z)
    if GATED:
        value *= tl.load(gate + image * C + c, mask=c < C, other=0.0)[None, :]
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def silu_pool(x, pooled, mean, rstd, weight, bias, P, C, length, BP: tl.constexpr, BC: tl.constexpr):
    """pooled (N, S, C): means of silu(normal x weight + bias) over the positions of each image, as S summands."""
    image, part, parts = tl.program_id(0), tl.program_id(2), tl.num_programs(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    w = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    begin = part * length
    end = tl.minimum(begin + length, P)
    total = tl.zeros((BP, BC), tl.float32)
    for step in range(0, length, BP):
        p = begin + step + tl.arange(0, BP)
        mask = (p < end)[:, None] & (c < C)[None, :]
        offsets = image.to(tl.int64) * P * C + p[:, None] * C + c[None, :]
        normal, _ = _normal(x, offsets, c, mask, mean, rstd, C)
        z = normal * w[None, :] + b[None, :]
        total += tl.where(mask, z * tl.sigmoid(z), 0.0)
    tl.store(pooled + (image * parts + part) * C + c, tl.sum(total, 0) / P, mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def silu_reduce(
    x, dy, out, mean, rstd, weight, bias, P, C, length, GATED: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr
):
    """out (5, N, S, C), of each image and part the sums over positions of

    0: silu' dy   1: silu' dy normal   2: silu' dy's own value, dy silu   3: silu'   4: silu' normal
    (2 to 4 only with GATED).
    """
    image, part, parts = tl.program_id(0), tl.program_id(2), tl.num_programs(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    w = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    begin = part * length
    end = tl.minimum(begin + length, P)
    s0 = tl.zeros((BP, BC), tl.float32)
    s1 = tl.zeros((BP, BC), tl.float32)
    s2 = tl.zeros((BP, BC), tl.float32)
    s3 = tl.zeros((BP, BC), tl.float32)
    s4 = tl.zeros((BP, BC), tl.float32)
    for step in range(0, length, BP):
        p = begin + step + tl.arange(0, BP)
        mask = (p < end)[:, None] & (c < C)[None, :]
        offsets = image.to(tl.int64) * P * C + p[:, None] * C + c[None, :]
        normal, _ = _normal(x, offsets, c, mask, mean, rstd, C)
        z = normal * w[None, :] + b[None, :]
        sigmoid = tl.sigmoid(z)
        slope = tl.where(mask, sigmoid * (1 + z * (1 - sigmoid)), 0.0)
        gradient = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32)
        s0 += slope * gradient
        s1 += slope * gradient * normal
        if GATED:
            s2 += z * sigmoid * gradient
            s3 += slope
            s4 += slope * normal
    place = (image * parts + part) * C + c
    stride = tl.num_programs(0) * parts * C
    tl.store(out + place, tl.sum(s0, 0), mask=c < C)
    tl.store(out + stride + place, tl.sum(s1, 0), mask=c < C)
    if GATED:
        tl.store(out + 2 * stride + place, tl.sum(s2, 0), mask=c < C)
        tl.store(out + 3 * stride + place, tl.sum(s3, 0), mask=c < C)
        tl.store(out + 4 * stride + place, tl.sum(s4, 0), mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def silu_backward(
    x, dy, dx, stats, rstd, weight, bias, gate, dpool, sums, num_real, P, C,
    GATED: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dx = weight rstd (dz - mean dz - normal mean(dz normal)), dz = silu' (dy gate + dpool / P); 0 in images that pad.

    sums (2, C): of dz and of dz normal over all numbers that count.
    """
    image, offsets, c, mask = _tile(tl.program_id(0), P, C, BP, BC)
    normal, r = _normal(x, offsets, c, mask, stats, rstd, C)
    w = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    z = normal * w[None, :] + b[None, :]
    sigmoid = tl.sigmoid(z)
    gradient = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32)
    if GATED:
        gradient = gradient * tl.load(gate + image * C + c, mask=c < C, other=0.0)[None, :]
        gradient += tl.load(dpool + image * C + c, mask=c < C, other=0.0)[None, :] / P
    dz = gradient * sigmoid * (1 + z * (1 - sigmoid))
    m0, m1 = _means(sums, stats, c, C)
    value = (dz - m0[None, :] - normal * m1[None, :]) * (w * r)[None, :]
    value = tl.where(image < tl.load(num_real), value, 0.0)
    tl.store(dx + offsets, value.to(dx.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def affine_forward(
    x, residual, y, mean, rstd, weight, bias, scale, add, kept, P, C,
    RESIDUAL: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y = (residual + kept (normal x weight + bias)) scale + add; scale and add (N, C), kept (N,)."""
    image, offsets, c, mask = _tile(tl.program_id(0), P, C, BP, BC)
    normal, _ = _normal(x, offsets, c, mask, mean, rstd, C)
    w = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    value = (normal * w[None, :] + b[None, :]) * tl.load(kept + image).to(tl.float32)
    if RESIDUAL:
        value += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
    value = value * tl.load(scale + image * C + c, mask=c < C, other=0.0)[None, :]
    value += tl.load(add + image * C + c, mask=c < C, other=0.0)[None, :]
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def affine_reduce(
    x, residual, dy, out, mean, rstd, P, C, length, RESIDUAL: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr
):
    """out (3, N, S, C), of each image and part the sums over positions of 0: dy  1: dy normal  2: dy residual."""
    image, part, parts = tl.program_id(0), tl.program_id(2), tl.num_programs(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    begin = part * length
    end = tl.minimum(begin + length, P)
    s0 = tl.zeros((BP, BC), tl.float32)
    s1 = tl.zeros((BP, BC), tl.float32)
    s2 = tl.zeros((BP, BC), tl.float32)
    for step in range(0, length, BP):
        p = begin + step + tl.arange(0, BP)
        mask = (p < end)[:, None] & (c < C)[None, :]
        offsets = image.to(tl.int64) * P * C + p[:, None] * C + c[None, :]
        normal, _ = _normal(x, offsets, c, mask, mean, rstd, C)
        gradient = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32)
        s0 += gradient
        s1 += gradient * normal
        if RESIDUAL:
            s2 += gradient * tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
    place = (image * parts + part) * C + c
    stride = tl.num_programs(0) * parts * C
    tl.store(out + place, tl.sum(s0, 0), mask=c < C)
    tl.store(out + stride + place, tl.sum(s1, 0), mask=c < C)
    if RESIDUAL:
        tl.store(out + 2 * stride + place, tl.sum(s2, 0), mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def affine_backward(
    x, dy, dx, dresidual, stats, rstd, weight, scale, kept, sums, num_real, P, C,
    RESIDUAL: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dresidual = dy scale; dx as in silu_backward with dz = kept dy scale."""
    image, offsets, c, mask = _tile(tl.program_id(0), P, C, BP, BC)
    normal, r = _normal(x, offsets, c, mask, stats, rstd, C)
    w = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    gradient = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32)
    gradient = gradient * tl.load(scale + image * C + c, mask=c < C, other=0.0)[None, :]
    if RESIDUAL:
        tl.store(dresidual + offsets, gradient.to(dresidual.dtype.element_ty), mask=mask)
    m0, m1 = _means(sums, stats, c, C)
    dz = gradient * tl.load(kept + image).to(tl.float32)
    value = (dz - m0[None, :] - normal * m1[None, :]) * (w * r)[None, :]
    value = tl.where(image < tl.load(num_real), value, 0.0)
    tl.store(dx + offsets, value.to(dx.dtype.element_ty), mask=mask)
