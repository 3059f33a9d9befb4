"""Sizes from headers, decoding, and the geometry of the three ways of resizing."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from preprocessing.images import (
    Resize,
    decode_image,
    encode_jpeg,
    image_size,
    reencode,
    require_whole_image,
    resize_image,
)

SIDE = st.integers(1, 80)


def png(image_HWC: np.ndarray) -> bytes:
    page = io.BytesIO()
    Image.fromarray(image_HWC).save(page, "PNG")
    return page.getvalue()


@given(height=SIDE, width=SIDE)
def test_sizes_come_from_the_header(height: int, width: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    assert image_size(png(image)) == image_size(encode_jpeg(image)) == (height, width)
    assert decode_image(encode_jpeg(image)).shape == image.shape


def test_png_decodes_exactly() -> None:
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(png(image)), image)


@pytest.mark.parametrize("junk", [b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"not an image"])
def test_no_image_is_a_value_error(junk: bytes) -> None:
    with pytest.raises(ValueError):
        image_size(junk)
    with pytest.raises(ValueError):
        decode_image(junk)


@given(st.sampled_from(["pad", "squash", "crop"]), SIDE, SIDE, SIDE, SIDE)
def test_a_grey_frame_stays_grey_at_the_asked_size(
    how: Resize, height: int, width: int, new_height: int, new_width: int
) -> None:
    resized = resize_image(np.full((height, width, 3), 200, np.uint8), new_height, new_width, how)
    assert resized.shape == (new_height, new_width, 3)
    assert set(np.unique(resized)) <= ({0, 200} if how == "pad" else {200})


def test_pad_and_crop_keep_the_aspect_ratio() -> None:
    wide = np.full((10, 40, 3), 255, np.uint8)
    padded = resize_image(wide, 20, 20, "pad")
    assert (padded[:, 0, 0] > 0).tolist() == [False] * 7 + [True] * 5 + [False] * 8 or padded[:, 0, 0].sum() == 5 * 255
    wide[:, :15] = wide[:, 25:] = 0
    assert (resize_image(wide, 10, 10, "crop") == 255).all()


def test_frames_of_the_asked_size_pass_through_untouched() -> None:
    image = np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8)
    for encoded in (encode_jpeg(image), png(image)):
        assert reencode(encoded, 32, 40, "pad") is encoded


@pytest.mark.parametrize("how", ["pad", "squash", "crop"])
def test_reduced_scale_decoding_changes_little(how: Resize) -> None:
    ramp = np.linspace(0, 255, 640).astype(np.uint8)
    smooth = np.stack([np.tile(ramp, (480, 1)), np.tile(ramp[:480, None], (1, 640)), np.full((480, 640), 90)], axis=-1)
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(smooth.astype(np.uint8)), quality=95)
    fast = decode_image(reencode(encoded, 96, 96, how)).astype(int)
    exact = resize_image(decode_image(encoded), 96, 96, how).astype(int)
    assert np.abs(fast - exact).mean() < 1.5


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_frame_that_was_cut_off_is_not_whole(kind: str) -> None:
    noise, out = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(noise).save(out, kind)
    whole = out.getvalue()
    require_whole_image(whole)
    for left in (30, len(whole) // 2):
        with pytest.raises(ValueError):
            require_whole_image(whole[:left])


def test_bytes_after_a_frame_are_no_fault() -> None:
    require_whole_image(encode_jpeg(np.zeros((8, 8, 3), np.uint8)) + b"\0\0")


def test_a_few_bytes_that_claim_a_huge_image_are_refused() -> None:
    def chunk(body: bytes) -> bytes:
        return (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    size = (40_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    huge = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR" + size) + chunk(b"IDAT" + zlib.compress(b"")) + chunk(b"IEND")
    with pytest.raises(ValueError, match=r"claims 40000x40000, 1600000000 pixels"):
        decode_image(huge)
