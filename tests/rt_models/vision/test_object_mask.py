"""A mark of one pixel survives every crop and every size, at the place where its object is, or at the border."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_models.vision.image_inputs import crop_offsets, pad_crop
from rt_models.vision.object_mask import drawn

FIRST, SECOND = 255, 128


def marked(height: int, width: int, marks: dict[tuple[int, int], int]) -> torch.Tensor:
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    for (row, column), value in marks.items():
        mask[0, row, column] = value
    return mask


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 90), st.integers(1, 90), st.integers(1, 70))
def test_a_mark_is_one_pixel_where_the_crop_has_moved_it_or_at_the_border(
    data: st.DataObject, height: int, width: int, size: int
) -> None:
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    down, right = (data.draw(st.integers(-2 * side, 2 * side)) for side in (height, width))
    offsets = {"down_N": torch.tensor([down]), "right_N": torch.tensor([right])}
    image = drawn(marked(height, width, {(row, column): FIRST}), size, dtype=torch.float32, **offsets)
    assert image.sum() == 1 and image.max() == 1
    found = [int(place) for place in image[0].nonzero()[0]]
    for place, moved, length in zip(found, (row - down, column - right), (height, width), strict=True):
        inside = min(max(moved, 0), length - 1)
        assert place == int((inside + 0.5) * size / length)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_both_objects_are_marked_unless_they_fall_into_one_pixel(data: st.DataObject) -> None:
    places = data.draw(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 79)), min_size=2, max_size=2, unique=True))
    key, size = torch.tensor([data.draw(st.integers(0, 2**40))]), data.draw(st.sampled_from([16, 64, 300]))
    down = {"down_N": torch.tensor([data.draw(st.integers(-5, 5))]), "right_N": torch.tensor([key.item() % 25 - 12])}
    mask = marked(64, 80, dict(zip(places, (FIRST, SECOND), strict=True)))
    values = drawn(mask, size, dtype=torch.float64, **down).unique().tolist()
    both = [drawn(marked(64, 80, {p: FIRST}), size, dtype=torch.float64, **down).argmax() for p in places]
    assert values == ([0, 1] if both[0] == both[1] else [0, SECOND / 255, 1])


def test_the_mark_goes_where_the_picture_goes() -> None:
    keys = torch.arange(40)
    frames = torch.zeros(40, 64, 80, 4, dtype=torch.uint8)
    frames[:, 30, 41] = 255
    down_N, right_N = crop_offsets(64, keys, seed=5)
    moved = pad_crop(frames, keys, seed=5)[..., 0].float() / 255
    kept = moved.flatten(1).sum(1) == 1
    assert kept.sum() > 30
    same = drawn(frames[..., 3], 64, dtype=torch.float32, down_N=down_N, right_N=right_N)
    wide = drawn(frames[..., 3], 80, dtype=torch.float32, down_N=down_N, right_N=right_N)
    assert (moved[kept].amax(dim=2) == same[kept].amax(dim=2)).all()  # the row: 64 of 64
    assert (moved[kept].amax(dim=1) == wide[kept].amax(dim=1)).all()  # the column: 80 of 80


def test_the_part_of_an_area_that_the_crop_cuts_off_is_not_smeared_along_the_border() -> None:
    area = torch.zeros(1, 32, 32, dtype=torch.uint8)
    area[0, 4:20, 4:20] = FIRST
    image = drawn(area, 32, dtype=torch.float32, down_N=torch.tensor([10]), right_N=torch.tensor([0]))
    assert image.sum() == 10 * 16 and image[0, 10:].sum() == 0
