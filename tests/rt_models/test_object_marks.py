"""Marks of objects: one pixel each, the same for every size of frame that holds it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_models.object_marks import ObjectMarks

sides = st.integers(1, 400)
fractions = st.floats(0, 1, width=32)


@given(st.data(), sides, sides)
def test_a_mark_is_the_pixel_that_its_place_lies_in(data: st.DataObject, height: int, width: int) -> None:
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    inside = data.draw(st.floats(0.1, 0.9))
    mask = np.zeros((2, height, width), np.uint8)
    ObjectMarks(first=((column + inside) / width, (row + inside) / height)).draw(mask)
    assert (mask[:, row, column] == 255).all() and np.count_nonzero(mask) == 2


@given(fractions, fractions, fractions, fractions, sides, sides)
def test_of_two_objects_the_one_acted_on_is_never_lost(
    x: float, y: float, second_x: float, second_y: float, height: int, width: int
) -> None:
    mask = np.zeros((1, height, width), np.uint8)
    ObjectMarks(first=(x, y), second=(second_x, second_y)).draw(mask)
    shown = sorted(mask[mask > 0].tolist())
    assert shown in ([255], [128, 255])


@pytest.mark.parametrize("place", [(1.1, 0.5), (0.5, -0.1), (float("nan"), 0.5)])
def test_a_place_outside_of_the_frame_is_none(place: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        ObjectMarks(first=place)
    with pytest.raises(ValueError, match="from 0 to 1"):
        ObjectMarks(first=(0.5, 0.5), second=place)
