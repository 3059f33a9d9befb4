"""Frames that are brighter where the model looks."""

from __future__ import annotations

import numpy as np

from pipelines.reports.attention_view import lit


def test_a_frame_is_as_it_was_where_the_map_is_highest_and_dim_where_it_is_lowest() -> None:
    map_HW = np.zeros((2, 2))
    map_HW[1, 0] = 1.0
    shown = lit(np.full((40, 60, 3), 200, np.uint8), map_HW)
    assert shown.shape == (40, 60, 3)
    assert (shown[-1, 0] == 200).all() and (shown[0, -1] == 40).all()


def test_a_map_that_is_the_same_everywhere_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(lit(image, np.full((4, 4), 1 / 16)), image)
