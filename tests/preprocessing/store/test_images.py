"""Sizes from headers, decoding, and the geometry of the three ways of resizing."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from preprocessing.store import image_header
from preprocessing.store.image_header import MOST_PIXELS
from preprocessing.store.images import (
    Resize,
    decode_image,
    decode_into,
    encode_jpeg,
    image_size,
    reencode,
    require_whole_image,
    resize_image,
    resized_place,
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


@settings(max_examples=60)
@given(st.data(), st.sampled_from(["pad", "crop", "squash"]))
def test_a_place_moves_as_what_lies_there(data: st.DataObject, how: Resize) -> None:
    """A bright patch of a picture is found, after a resize, where its middle is said to be."""
    source, target = (tuple(data.draw(st.integers(24, 80)) for _ in "hw") for _ in "st")
    row, column = (data.draw(st.integers(0, side - 9)) for side in source)
    picture = np.zeros((*source, 3), np.uint8)
    picture[row : row + 9, column : column + 9] = 255
    x, y = resized_place(((column + 4.5) / source[1], (row + 4.5) / source[0]), source, target, how)
    resized = resize_image(picture, *target, how)[..., 0].astype(float)
    assert 0 <= x <= 1 and 0 <= y <= 1
    whole = 255 * 81 * np.prod(target) / np.prod(source)
    if how != "squash":
        ratio = (min if how == "pad" else max)(new / old for new, old in zip(target, source, strict=True))
        whole = 255 * 81 * ratio**2
    if resized.sum() < 0.9 * whole:  # cut off in part by "crop"
        return
    found_y, found_x = (
        resized.sum(axis=axis) @ (np.arange(side) + 0.5) / resized.sum()
        for axis, side in ((1, target[0]), (0, target[1]))
    )
    assert abs(found_x - x * target[1]) < 1 and abs(found_y - y * target[0]) < 1


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


# --- What is a picture ---

COARSE = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
SCENE = np.asarray(Image.fromarray(COARSE).resize((72, 48)))
INVERSE = Image.fromarray(~SCENE)


def saved(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    page = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(page, kind, **options)
    return page.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def png_header(height: int, width: int, *, bits: int = 8, colour: int = 2) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


def png_of(header: bytes, rows: bytes = b"") -> bytes:
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def jpeg_that_claims(height: int, width: int) -> bytes:
    """A small JPEG whose header says another size."""
    whole = saved(SCENE[:8, :8], "JPEG")
    place = whole.index(b"\xff\xc0") + 5
    return whole[:place] + struct.pack(">HH", height, width) + whole[place + 4 :]


def turned(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(SCENE, kind, exif=exif)


def both_readings(encoded: bytes) -> np.ndarray:
    """The picture, which decoding into a buffer and the size from the header must agree with."""
    image_HWC = decode_image(encoded)
    buffer_HWC = np.zeros_like(image_HWC)
    assert image_size(encoded) == image_HWC.shape[:2] == decode_into(encoded, buffer_HWC)
    np.testing.assert_array_equal(buffer_HWC, image_HWC)
    return image_HWC


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_stands_a_picture_upright_for_every_reader(kind: str, orientation: int) -> None:
    encoded = turned(kind, orientation)
    require_whole_image(encoded)
    seen = both_readings(encoded)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB"))  # as viewers show it
    assert seen.shape == shown.shape
    assert np.abs(seen.astype(int) - shown).mean() < 1
    assert reencode(encoded, *seen.shape[:2], "pad") is encoded
    smaller = decode_image(reencode(encoded, 24, 24, "crop")).astype(int)
    assert np.abs(smaller - resize_image(seen, 24, 24, "crop")).mean() < 5


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_makes_no_sense_is_none(orientation: int) -> None:
    np.testing.assert_array_equal(both_readings(turned("PNG", orientation)), SCENE)


def test_the_orientation_of_a_thumbnail_is_not_the_picture_s() -> None:
    whole, body = saved(SCENE, "JPEG"), b"JFXX\0" + turned("JPEG", 6)
    thumbnail = b"\xff\xe0" + struct.pack(">H", len(body) + 2) + body
    assert both_readings(whole[:2] + thumbnail + whole[2:]).shape == (48, 72, 3)
    both_readings(turned("JPEG", 6)[:2] + thumbnail + turned("JPEG", 6)[2:])  # wherever it stands, all see the same


@pytest.mark.parametrize(
    ("encoded", "words"),
    [
        (saved(np.full((48, 64), 4000, np.uint16), "PNG"), "mode I;16, as depth images have"),
        (png_of(png_header(2, 2, bits=16), bytes(26)), "mode RGB;16, as depth images have"),
        (png_of(png_header(2, 2, bits=16, colour=4), bytes(18)), "mode LA;16"),
        (saved(np.ones((4, 4), np.float32), "TIFF"), "no image"),
        (saved(SCENE, "TIFF"), "no image"),
        (saved(SCENE, "GIF", save_all=True, append_images=[INVERSE]), "GIF is animated"),
        (saved(SCENE, "PNG", save_all=True, append_images=[INVERSE]), "PNG is animated"),
        (saved(SCENE, "WebP", save_all=True, append_images=[INVERSE]), "WebP is animated"),
        (png_of(png_header(0, 4)), "has no pixels"),
        (jpeg_that_claims(8, 8).replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), "mode JPEG;12"),
    ],
)
def test_what_is_no_picture_of_eight_bits_is_refused_by_its_header(encoded: bytes, words: str) -> None:
    for read in (image_size, require_whole_image, decode_image):
        with pytest.raises(ValueError, match=words):
            read(encoded)
    with pytest.raises(ValueError):
        decode_into(encoded, np.zeros((48, 72, 3), np.uint8))


@pytest.mark.parametrize(
    ("kind", "modes"),
    [
        ("JPEG", ["1", "L", "RGB", "CMYK"]),
        ("PNG", ["1", "L", "LA", "P", "RGB", "RGBA"]),
        ("WebP", ["L", "LA", "P", "RGB", "RGBA"]),
        ("GIF", ["1", "L", "LA", "P", "RGB", "RGBA"]),
        ("BMP", ["1", "L", "P", "RGB", "RGBA"]),
    ],
)
def test_every_mode_of_eight_bits_becomes_rgb(kind: str, modes: list[str]) -> None:
    for mode in modes:
        encoded = saved(Image.fromarray(SCENE).convert(mode), kind)
        require_whole_image(encoded)
        expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)
        assert np.abs(both_readings(encoded) - expected).mean() < 2, mode


def test_alpha_is_dropped_and_the_colours_below_it_are_kept() -> None:
    clear = np.dstack([SCENE, np.zeros(SCENE.shape[:2], np.uint8)])
    np.testing.assert_array_equal(both_readings(png(clear)), SCENE)


# --- What a few bytes can cost ---


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    whole = saved(SCENE, "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * count + whole[-2:]


HUGE_BMP = b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, 30_000, 17_000, 1, 24, 0, 0, 0, 0, 0, 0)
HUGE_WEBP = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0" + bytes(8)
BOMBS = {
    "JPEG": (jpeg_that_claims(17_000, 30_000), "claims 17000x30000"),
    "JPEG below the limit": (jpeg_that_claims(5_000, 6_000), "cannot hold"),
    "PNG": (png_of(png_header(40_000, 40_000)), "claims 40000x40000, 1600000000 pixels"),
    "PNG with two headers": (png_of(png_header(4, 4) + png_header(9000, 9000)), "says 4x4, its data 9000x9000"),
    "GIF": (b"GIF89a" + struct.pack("<HH", 30_000, 17_000) + saved(SCENE, "GIF")[10:], "claims 17000x30000"),
    "BMP": (HUGE_BMP, "claims 17000x30000"),
    "WebP": (HUGE_WEBP, "claims 16384x16384"),
    "scans": (scans(400), "JPEG has 4.. scans"),
    "segments": (saved(SCENE, "JPEG")[:2] + b"\xff\xfe\0\2" * 2000 + saved(SCENE, "JPEG")[2:], "1024 segments"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_few_bytes_that_claim_much_are_refused_before_memory_is_taken(name: str) -> None:
    encoded, words = BOMBS[name]
    tracemalloc.start()
    try:
        for read in (require_whole_image, decode_image, lambda encoded: reencode(encoded, 8, 8, "squash")):
            with pytest.raises(ValueError, match=words):
                read(encoded)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_the_chunks_that_are_walked_through_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_header, "_MOST_CHUNKS", 20)
    fine, many = (png_of(png_header(4, 4) + chunk(b"tEXt", b"") * count, (b"\0" + bytes(12)) * 4) for count in (9, 40))
    both_readings(fine)
    with pytest.raises(ValueError, match="the PNG has more than 20 chunks"):
        require_whole_image(many)


def test_a_large_photograph_is_a_picture() -> None:
    encoded = saved(Image.new("RGB", (8192, 4096), (9, 8, 7)), "JPEG")
    assert MOST_PIXELS == 8192 * 4096
    assert image_size(encoded) == (4096, 8192)
    require_whole_image(encoded)


# --- Stray bytes and damage ---


@pytest.mark.parametrize("progressive", [False, True])
def test_stray_bytes_before_the_end_marker_are_no_damage(progressive: bool) -> None:
    whole = saved(SCENE, "JPEG", progressive=progressive)
    stray = whole[:-2] + b"\0" * 17 + whole[-2:]
    require_whole_image(stray)
    np.testing.assert_array_equal(both_readings(stray), decode_image(whole))
    assert reencode(stray, 16, 16, "squash") == reencode(whole, 16, 16, "squash")


def test_oddities_of_a_header_are_no_damage_and_hide_none() -> None:
    whole = saved(SCENE, "JPEG")
    places = [whole.index(marker) for marker in (b"\xff\xdb", b"\xff\xc0", b"\xff\xda")]
    scan = places[-1] + 2 + int.from_bytes(whole[places[-1] + 2 : places[-1] + 4])
    odd = [whole[:place] + b"\0\1\2" + whole[place:] for place in places]  # bytes between segments
    odd.append(whole.replace(b"JFIF\0\1", b"JFIF\0\3"))
    odd.append(whole[: scan - 3] + bytes(3) + whole[scan:])  # coefficients 0 to 0
    odd.append(odd[0][:-2] + b"\0" + whole[-2:])
    for encoded in odd:
        require_whole_image(encoded)
        np.testing.assert_array_equal(both_readings(encoded), decode_image(whole))
        for hidden in (encoded[:-60] + encoded[-2:], encoded[:-60]):
            for read in (require_whole_image, decode_image):
                with pytest.raises(ValueError, match=r"(?i)premature end"):
                    read(hidden)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_look_at_header_and_end_finds_what_was_cut_and_what_claims_too_much(kind: str) -> None:
    whole = saved(SCENE, kind)
    for damaged in (whole[:-60], whole[:40]):
        with pytest.raises(ValueError):
            require_whole_image(damaged, thoroughly=False)
    hollow = whole[:-200] + whole[-12:]
    require_whole_image(hollow, thoroughly=False)
    with pytest.raises(ValueError):
        require_whole_image(hollow)
    with pytest.raises(ValueError, match="claims"):
        require_whole_image(BOMBS[kind][0], thoroughly=False)


WHOLE = {kind: saved(SCENE[:24, :32], kind) for kind in ("JPEG", "PNG", "WebP", "GIF", "BMP")}
WHOLE["JPEG progressive"] = saved(SCENE[:24, :32], "JPEG", progressive=True)


@pytest.mark.parametrize("kind", WHOLE)
def test_the_beginning_of_a_file_is_no_picture(kind: str) -> None:
    for length in range(60):
        with pytest.raises(ValueError):
            require_whole_image(WHOLE[kind][:length])


@settings(max_examples=200)
@given(
    kind=st.sampled_from(sorted(WHOLE)),
    changes=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), max_size=4),
    stray=st.tuples(st.floats(0, 1), st.binary(max_size=8)),
    length=st.just(1.0) | st.floats(0, 1),
)
def test_what_the_door_lets_in_every_reader_reads(
    kind: str, changes: list[tuple[float, int]], stray: tuple[float, bytes], length: float
) -> None:
    content = bytearray(WHOLE[kind])
    for place, value in changes:
        content[int(place * len(content))] = value
    place = int(stray[0] * len(content))
    content[place:place] = stray[1]
    damaged = bytes(content[: round(length * len(content))])
    try:
        require_whole_image(damaged)
    except ValueError:
        with pytest.raises(ValueError):
            decode_image(damaged)
    else:
        both_readings(damaged)
