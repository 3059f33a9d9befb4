"""Marks of objects (MOO, arXiv 2303.00905) as a channel of the image, drawn after crop and resize: none is lost.

A mark is one pixel. Cropped and resized with the picture it would fade, or fall between the rows that are sampled; here
every marked pixel of the frame marks the pixel of the image that it falls into, the brightest where several do. A mark
that the crop cuts off is drawn at the border where it left, unless another of its brightness is still there.

Axes: N images, HW pixels of the frame, S rows and columns of the image.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEVELS = 256


def drawn(
    mask_NHW: Tensor, size: int, *, dtype: torch.dtype, down_N: Tensor | None = None, right_N: Tensor | None = None
) -> Tensor:
    """float (N, S, S) in [0, 1] of uint8 masks; a crop moves the frame up and left by `down_N` and `right_N` pixels."""
    count, height, width = mask_NHW.shape
    still_N = torch.zeros(count, dtype=torch.int64, device=mask_NHW.device)
    rows_NH = _moved(height, still_N if down_N is None else down_N)
    columns_NW = _moved(width, still_N if right_N is None else right_N)
    inside_NHW = _within(rows_NH, height)[:, :, None] & _within(columns_NW, width)[:, None, :]
    level_NP = mask_NHW.flatten(1).long()
    shown_NL = level_NP.new_zeros(count, _LEVELS).scatter_add(1, level_NP, inside_NHW.flatten(1).long())
    counts_NP = inside_NHW.flatten(1) | (shown_NL.gather(1, level_NP) == 0)
    place_NHW = _places(rows_NH, height, size)[:, :, None] * size + _places(columns_NW, width, size)[:, None, :]
    value_NP = level_NP.to(dtype) / (_LEVELS - 1) * counts_NP
    image_NP = value_NP.new_zeros(count, size * size).scatter_reduce(1, place_NHW.flatten(1), value_NP, "amax")
    return image_NP.view(count, size, size)


def _moved(length: int, offset_N: Tensor) -> Tensor:
    """int64 (N, length): where each row or column of a frame lies after the crop."""
    return torch.arange(length, device=offset_N.device) - offset_N[:, None]


def _within(place_NX: Tensor, length: int) -> Tensor:
    return (place_NX >= 0) & (place_NX < length)


def _places(place_NX: Tensor, length: int, size: int) -> Tensor:
    """The row or column of the image that each of the frame falls into, with its middle."""
    return (2 * place_NX.clamp(0, length - 1) + 1) * size // (2 * length)
