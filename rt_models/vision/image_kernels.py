"""A Triton kernel from uint8 frames to what the network sees: gather, crop, resize and normalise in one pass.

The same arithmetic as `image_inputs.pad_crop` and `resize` and the normalisation of `rt1.ImageTokenizer`, in float32.
"""

# pyright: reportGeneralTypeIssues=false
# Where Triton is installed, its types say that a function of a kernel never returns.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tap(frame, y, x, down, right, H, W, inside, channel: tl.constexpr):
    """A pixel of the frame moved by (down, right): black outside."""
    row, column = y + down, x + right
    mask = inside & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    return tl.load(frame + (row * W + column) * 3 + channel, mask=mask, other=0).to(tl.float32)


@triton.jit
def frames_to_images(
    frames, out, frame_N, down_N, right_N, mean_C, std_C, H, W, size, step_y, step_x, BLOCK: tl.constexpr
):
    image = tl.program_id(0)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size * size
    frame = frames + tl.load(frame_N + image) * H * W * 3
    down, right = tl.load(down_N + image).to(tl.int32), tl.load(right_N + image).to(tl.int32)
    sy = tl.maximum(((place // size).to(tl.float32) + 0.5) * step_y - 0.5, 0.0)
    sx = tl.maximum(((place % size).to(tl.float32) + 0.5) * step_x - 0.5, 0.0)
    y0, x0 = sy.to(tl.int32), sx.to(tl.int32)
    fy, fx = sy - y0.to(tl.float32), sx - x0.to(tl.float32)
    y1, x1 = tl.minimum(y0 + 1, H - 1), tl.minimum(x0 + 1, W - 1)
    for channel in tl.static_range(3):
        top = _tap(frame, y0, x0, down, right, H, W, inside, channel) * (1 - fx)
        top += _tap(frame, y0, x1, down, right, H, W, inside, channel) * fx
        bottom = _tap(frame, y1, x0, down, right, H, W, inside, channel) * (1 - fx)
        bottom += _tap(frame, y1, x1, down, right, H, W, inside, channel) * fx
        value = (top * (1 - fy) + bottom * fy) / 255
        value = (value - tl.load(mean_C + channel)) / tl.load(std_C + channel)
        start = image.to(tl.int64) * size * size * 3
        tl.store(out + start + place * 3 + channel, value.to(out.dtype.element_ty), mask=inside)
