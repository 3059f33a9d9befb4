"""Which frames a request may hold, how they are read, and what is refused in which words."""

from __future__ import annotations

import base64
import contextlib
import io
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipelines.serving import request_values
from pipelines.serving.request_values import camera_frame
from preprocessing.store.images import decode_image, encode_jpeg, reencode
from rt_models.spec import ImageRecipe


def png(pixels_HWC: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "PNG")
    return file.getvalue()


@given(seed=st.integers(0, 2**31), height=st.integers(1, 20), width=st.integers(1, 20))
def test_every_form_of_a_frame_is_the_same_frame(seed: int, height: int, width: int) -> None:
    pixels_HWC = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    recipe = ImageRecipe(camera="image", height=height, width=width)
    raw, encoded = pixels_HWC.tobytes(), png(pixels_HWC)
    rows = np.empty(height, dtype=object)  # as a data frame may hold nested sequences
    rows[:] = [row.tolist() for row in pixels_HWC]
    text = base64.b64encode(encoded).decode()
    for form in (pixels_HWC, pixels_HWC.astype(np.int64), pixels_HWC.tolist(), rows, encoded, raw, text):
        np.testing.assert_array_equal(camera_frame(form, recipe), pixels_HWC)


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
RECIPE = ImageRecipe(camera="image", height=8, width=6)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, "got nothing"),
        (7, "got int"),
        (np.zeros((8, 6, 3)), r"got float64 \(8, 6, 3\)"),
        (np.zeros((8, 6, 4), np.uint8), r"got uint8 \(8, 6, 4\)"),
        (np.zeros((8, 6), np.uint8), r"got uint8 \(8, 6\)"),
        (np.full((8, 6, 3), 256), r"got int64 \(8, 6, 3\)"),
        ([[1, 2], [3]], "unequal length"),
        (b"no picture", "10 bytes that are no image"),
        ("no base64!", "not base64"),
        (png(NOISE)[: len(png(NOISE)) // 2], "cannot be decoded"),
        (png(np.zeros((8, 6), np.uint16)), "mode I;16, as depth images have"),
        (np.zeros((9, 0, 3), np.uint8), r"got uint8 \(9, 0, 3\)"),
        ([[[0]]] * 2, r"got int64 \(2, 1, 1\)"),
    ],
)
def test_what_is_no_frame_is_refused_in_words(image: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        camera_frame(image, RECIPE)


def test_what_is_larger_than_a_camera_s_frame_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_values, "MAX_CAMERA_PIXELS", 64 * 64 - 1)
    for image in (png(NOISE), encode_jpeg(NOISE), NOISE, NOISE.tolist(), base64.b64encode(png(NOISE)).decode()):
        with pytest.raises(ValueError, match="the camera frame is 64x64, at most 4095 pixels are read"):
            camera_frame(image, RECIPE)
    monkeypatch.setattr(request_values, "MAX_ENCODED_BYTES", 100)
    with pytest.raises(ValueError, match="at most 100 are read"):
        camera_frame(png(NOISE), RECIPE)
    with pytest.raises(ValueError, match="404 letters of base64, which is over 100 bytes"):
        camera_frame("A" * 404, RECIPE)


def test_a_small_file_that_claims_many_pixels_costs_no_memory() -> None:
    encoded = encode_jpeg(NOISE)
    place = encoded.index(b"\xff\xc0") + 5
    lying = encoded[:place] + (17_000).to_bytes(2, "big") + (30_000).to_bytes(2, "big") + encoded[place + 4 :]
    tracemalloc.start()
    with pytest.raises(ValueError, match="image cannot be decoded: the image claims 17000x30000, 510000000 pixels"):
        camera_frame(base64.b64encode(lying).decode(), RECIPE)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_frame_that_was_taken_turned_is_seen_upright(orientation: int) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(NOISE[:8, :6] if orientation == 3 else NOISE[:6, :8]).save(file, "PNG", exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    np.testing.assert_array_equal(camera_frame(file.getvalue(), RECIPE), shown)


@pytest.mark.parametrize("resize", ["none", "pad", "squash", "crop"])
def test_a_frame_of_another_size_is_resized_as_the_store_s_frames_were(resize: Any) -> None:
    recipe = ImageRecipe(camera="image", height=24, width=32, resize=resize)
    how = "pad" if resize == "none" else resize
    frame = np.ascontiguousarray(NOISE[:40])
    stored = decode_image(reencode(png(frame), 24, 32, how))
    np.testing.assert_array_equal(camera_frame(png(frame), recipe), stored)
    assert np.abs(camera_frame(frame, recipe).astype(int) - stored).mean() < 4  # JPEG of the store


@given(
    picture=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]),
    places=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4),
    length=st.floats(0, 1),
)
def test_a_damaged_picture_is_a_frame_or_refused_in_words(
    picture: str, places: list[tuple[float, int]], length: float
) -> None:
    file = io.BytesIO()
    Image.fromarray(NOISE[:8, :6]).save(file, picture)
    content = bytearray(file.getvalue())
    for place, value in places:
        content[int(place * len(content))] = value
    with contextlib.suppress(ValueError):
        assert camera_frame(bytes(content[: round(length * len(content))]), RECIPE).shape == (8, 6, 3)


def test_jpeg_frames_are_decoded_as_in_training() -> None:
    jpeg = encode_jpeg(NOISE)
    recipe = ImageRecipe(camera="image", height=64, width=64)
    np.testing.assert_array_equal(camera_frame(jpeg, recipe), decode_image(jpeg))
