"""Copies of a picture are near, other pictures are not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from preprocessing.filtering.picture_signature import PictureSignature, are_near, signature
from tests.support.scored_pairs import encoded, scene


def near(first: PictureSignature, second: PictureSignature) -> bool:
    thumbnails = [np.frombuffer(each.thumbnail, np.uint8) for each in (first, second)]
    bits = np.array([second.bits], np.uint64)
    return bool(are_near(np.uint64(first.bits), thumbnails[0], bits, thumbnails[1][None], distance=3)[0])


@pytest.mark.parametrize(("side", "quality"), [(200, 50), (150, 75), (100, 75), (320, 85)])
def test_a_copy_of_another_size_and_quality_is_near(side: int, quality: int) -> None:
    for seed in range(8):
        original = scene(seed, size=200)
        copy = original.resize((side, side), Image.Resampling.LANCZOS)
        assert near(signature(encoded(original, "PNG")), signature(encoded(copy, quality=quality)))


def test_other_pictures_are_not() -> None:
    seen = [signature(encoded(scene(seed))) for seed in range(40)]
    assert not any(near(a, b) for number, a in enumerate(seen) for b in seen[:number])


def test_flat_pictures_of_two_colours_are_not_copies() -> None:
    red, blue = (signature(encoded(Image.new("RGB", (64, 64), colour))) for colour in ("red", "blue"))
    assert red.bits == blue.bits == 0 and not near(red, blue)


def test_a_turned_photograph_is_a_copy_of_what_a_viewer_shows() -> None:
    upright = scene(3, size=64)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(upright.transpose(Image.Transpose.ROTATE_90), quality=95, exif=exif)
    assert near(signature(encoded(upright, quality=95)), signature(turned))


def test_a_damaged_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes"):
        signature(b"no picture")
