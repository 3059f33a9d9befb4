"""Where the objects meant lie in an episode's first frame, and how they are marked in a mask (MOO, arXiv 2303.00905).

A mark is one pixel: 1.0 for the object acted on, 0.5 for a second one. Data job, trainer and server draw it here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

FIRST_VALUE, SECOND_VALUE = 255, 128
"""Of uint8: 1.0 and 0.5."""


class MarksMissing(ValueError):
    """A policy that reads object masks is not told where the object meant is."""

    field = "object_box"

    def __init__(self, *, where: str = "", because: str = "") -> None:
        super().__init__(
            f"{where}{self.field}: it is missing: a mark tells this policy which object is meant, so say where that "
            f"object is with the first frame of an episode{because}"
        )


@dataclass(frozen=True, kw_only=True)
class ObjectMarks:
    """Fractions (x, y) of the frame, from its upper left corner: x to the right, y down."""

    first: tuple[float, float]
    """Middle of the object acted on."""
    second: tuple[float, float] | None = None
    """Middle of a second object: "move X near Y"."""

    def __post_init__(self) -> None:
        for place in self._places():
            if not all(math.isfinite(fraction) and 0 <= fraction <= 1 for fraction in place):
                raise ValueError(f"a mark lies at fractions (x, y) of the frame from 0 to 1, not at {place}")

    def draw(self, mask_NHW: np.ndarray) -> None:
        """Mark the objects in masks (N, H, W), uint8; where both fall into one pixel, the one acted on."""
        height, width = mask_NHW.shape[1:]
        values = (FIRST_VALUE, SECOND_VALUE)
        for (x, y), value in reversed(list(zip(self._places(), values, strict=False))):
            mask_NHW[:, _pixel(y, height), _pixel(x, width)] = value

    def _places(self) -> list[tuple[float, float]]:
        return [self.first, *([] if self.second is None else [self.second])]


MIDDLE = ObjectMarks(first=(0.5, 0.5))
"""What says nothing of where an object is."""


def _pixel(fraction: float, length: int) -> int:
    """In float32, as places are stored: 3 / 320 of 320 pixels is pixel 3, and in float64 it would be 2."""
    return min(int(np.float32(fraction) * np.float32(length)), length - 1)
