"""What a picture is, for all that read one: robots' frames, image-text data, audit, loader, report and server.

A picture is judged by its header before anything is decoded (`preprocessing/store/image_header.py`), then by its data:
what `require_whole_image` lets in, everything here decodes, to the same pixels, upright as its EXIF orientation says. A
palette becomes its colours, grey three equal channels, CMYK and YCCK become RGB; alpha is dropped and the colours below
it are kept as they are stored, as TensorFlow does.

JPEG goes through libjpeg-turbo, everything else through Pillow. Axes: H height, W width, C colour.
"""

from __future__ import annotations

import io
from typing import Any, Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from preprocessing.store.image_header import JPEG, MOST_PIXELS, ImageHeader, jpeg_orientation, read_header, tidied

Resize = Literal["pad", "squash", "crop"]

JPEG_QUALITY = 95
_LONGEST_SIDE = 8192
_END = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
# Complaints of libjpeg that leave every pixel as it was encoded. It tells only the first: none follows on stray bytes
# before the end marker, but others may hide behind those about the header.
_STRAY_BEFORE_END = "extraneous bytes before marker 0xd9"
_OF_THE_HEADER = ("extraneous bytes before marker", "unknown JFIF revision", "Invalid SOS parameters for sequential")


class ImageSize(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int

    @staticmethod
    def parse(text: str, *, flag: str = "--image-size") -> ImageSize:
        """The size given with `flag`. Raises ValueError for text that is no size, or one that is too large."""
        sides = text.lower().split("x")
        numbers = [int(side) for side in sides if side.isdecimal() and 0 < int(side) <= _LONGEST_SIDE]
        if len(sides) != 2 or len(numbers) != 2 or numbers[0] * numbers[1] > MOST_PIXELS:
            raise ValueError(
                f"{flag} must be HEIGHTxWIDTH in pixels such as 256x320, at most {_LONGEST_SIDE} a side and "
                f"{MOST_PIXELS} in all, got {text!r}"
            )
        return ImageSize(*numbers)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


def image_size(encoded: bytes) -> ImageSize:
    """The size of the upright picture, from the header alone. Raises ValueError if the bytes are no picture:
    of no known kind, of more than 8 bits a channel, animated, or larger than `image_header.MOST_PIXELS`."""
    return _upright_size(read_header(encoded))


def require_whole_image(encoded: bytes, *, thoroughly: bool = True) -> ImageSize:
    """The size of the upright picture. Raises ValueError for what `decode_image` would refuse.

    A JPEG is read through to its end without computing its pixels (only an eighth of its height and width), which takes
    two thirds of the time; libjpeg complains of the same damage as in full size. Not `thoroughly`, a JPEG or PNG whose
    header is right and that ends as its kind does is taken to be whole: 0.01 ms instead of 0.3 for 256x320.
    """
    header = read_header(encoded)
    if thoroughly or not encoded.endswith(_END.get(header.kind, ())):
        if header.kind == "JPEG":
            _decoded_jpeg(encoded, min_height=1, min_width=1, fastdct=True, fastupsample=True)
        else:
            _decoded_by_pillow(encoded, header)
    return _upright_size(header)


def decode_image(encoded: bytes) -> np.ndarray:
    """uint8 (H, W, 3) RGB, upright. Raises ValueError for what `image_size` refuses, and for damaged data."""
    header = read_header(encoded)
    decoded = _decoded_jpeg(encoded) if header.kind == "JPEG" else _decoded_by_pillow(encoded, header)
    return _upright(decoded, header.orientation)


def decode_into(encoded: bytes, image_HWC: np.ndarray) -> ImageSize:
    """Decode into contiguous uint8 (H, W, 3); the picture's (height, width), with rubbish written where they differ."""
    if encoded.startswith(JPEG) and jpeg_orientation(encoded) == 1:
        try:
            decoded = _decoded_jpeg(encoded, buffer=image_HWC)
        except ValueError:
            size = image_size(encoded)
            if size == image_HWC.shape[:2]:
                raise
            return size
        return ImageSize(*decoded.shape[:2])
    decoded = decode_image(encoded)
    if decoded.shape == image_HWC.shape:
        image_HWC[:] = decoded
    return ImageSize(*decoded.shape[:2])


def encode_jpeg(image_HWC: np.ndarray, *, quality: int = JPEG_QUALITY) -> bytes:
    """JPEG without colour subsampling, from uint8 (H, W, 3) RGB."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image_HWC), quality=quality, colorsubsampling="444")


def encode_png(image_HWC: np.ndarray) -> bytes:
    """PNG, which loses nothing, from uint8 (H, W, 3) RGB or (H, W, 1) grey."""
    image = Image.fromarray(image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC)
    out = io.BytesIO()
    image.save(out, "png", compress_level=1)
    return out.getvalue()


def resize_image(image_HWC: np.ndarray, height: int, width: int, how: Resize) -> np.ndarray:
    """uint8 (height, width, 3), bilinear with antialiasing.

    "pad" keeps the aspect ratio and adds black borders (RT-1-X), "crop" keeps it and cuts the middle out.
    """
    source_height, source_width = image_HWC.shape[:2]
    if (source_height, source_width) == (height, width):
        return image_HWC
    image = Image.fromarray(image_HWC)
    if how == "squash":
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    ratios = height / source_height, width / source_width
    if how == "crop":
        box_height, box_width = min(height / max(ratios), source_height), min(width / max(ratios), source_width)
        top, left = (source_height - box_height) / 2, (source_width - box_width) / 2
        box = (left, top, left + box_width, top + box_height)
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))
    inner_height, inner_width = (max(round(side * min(ratios)), 1) for side in (source_height, source_width))
    padded = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    inner = image.resize((inner_width, inner_height), Image.Resampling.BILINEAR)
    padded[top : top + inner_height, left : left + inner_width] = np.asarray(inner)
    return padded


def resized_place(
    place: tuple[float, float], source: tuple[int, int], target: tuple[int, int], how: Resize | Literal["none"]
) -> tuple[float, float]:
    """Where a place, fractions (x, y) of a picture of `source` (height, width), lies after `resize_image` to `target`;
    what "crop" cuts off lies at the border. "none" pads, as frames of a size that is not the recorded one are."""
    if how == "squash" or source == target:
        return place
    ratios = [new / old for new, old in zip(target, source, strict=True)]
    ratio = max(ratios) if how == "crop" else min(ratios)
    moved = []
    for fraction, old, new in zip(place, source[::-1], target[::-1], strict=True):
        if how == "crop":
            inner = min(new / ratio, old)
            moved.append((fraction * old - (old - inner) / 2) / inner)
        else:
            inner = max(round(old * ratio), 1)
            moved.append(((new - inner) // 2 + fraction * inner) / new)
    x, y = (min(max(fraction, 0.0), 1.0) for fraction in moved)
    return x, y


def reencode(encoded: bytes, height: int, width: int, how: Resize) -> bytes:
    """The picture at another size, upright; bytes that have it already pass through untouched.

    A JPEG of more than twice the size is decoded at a reduced scale, which libjpeg does in the frequency domain.
    """
    header = read_header(encoded)
    source_height, source_width = _upright_size(header)
    if (source_height, source_width) == (height, width):
        return encoded
    if header.kind != "JPEG":
        return encode_jpeg(resize_image(decode_image(encoded), height, width, how))
    ratio = min(height / source_height, width / source_width) if how == "pad" else 0
    enough = (round(source_height * ratio), round(source_width * ratio)) if ratio else (height, width)
    least_height, least_width = enough[::-1] if header.lying else enough
    image_HWC = _decoded_jpeg(encoded, min_height=least_height, min_width=least_width)
    return encode_jpeg(resize_image(_upright(image_HWC, header.orientation), height, width, how))


def thumbnail(encoded: bytes, side: int) -> np.ndarray:
    """uint8 (side, side, 3) of a picture, upright and squashed.

    A large JPEG is decoded at a reduced scale, to twice the side at least: from less, cells move by up to 27 levels.
    Raises ValueError for what `decode_image` refuses.
    """
    header = read_header(encoded)
    if header.kind != "JPEG":
        return resize_image(decode_image(encoded), side, side, "squash")
    decoded = _decoded_jpeg(encoded, min_height=2 * side, min_width=2 * side)
    return resize_image(_upright(decoded, header.orientation), side, side, "squash")


def _upright_size(header: ImageHeader) -> ImageSize:
    if header.lying:
        return ImageSize(header.width, header.height)
    return ImageSize(header.height, header.width)


def _upright(image_HWC: np.ndarray, orientation: int) -> np.ndarray:
    """The picture as EXIF's `orientation` wants it shown: turned, and mirrored where it is 2, 4, 5 or 7."""
    if orientation == 1:
        return image_HWC
    turned = image_HWC.swapaxes(0, 1) if orientation >= 5 else image_HWC
    rows, columns = _REVERSED[orientation]
    return np.ascontiguousarray(turned[::rows, ::columns])


# Orientation: the steps along rows and columns, after rows and columns changed places where it is 5 or more.
_REVERSED = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}


def _decoded_jpeg(encoded: bytes, **options: Any) -> np.ndarray:
    """uint8 (H, W, 3) as stored. Raises ValueError with libjpeg's complaint, the first of them, for damaged data.

    Stray bytes before the end marker, and oddities of the header (`tidied`), are passed over, as by every viewer.
    """
    try:
        return simplejpeg.decode_jpeg(encoded, colorspace="RGB", **options)
    except ValueError as error:
        if _STRAY_BEFORE_END not in str(error):
            clean = tidied(encoded) if any(words in str(error) for words in _OF_THE_HEADER) else encoded
            if clean == encoded:
                raise
            return _decoded_jpeg(clean, **options)
    return simplejpeg.decode_jpeg(encoded, colorspace="RGB", strict=False, **options)


def _decoded_by_pillow(encoded: bytes, header: ImageHeader) -> np.ndarray:
    """uint8 (H, W, 3) as stored."""
    try:
        with Image.open(io.BytesIO(encoded), formats=[header.kind]) as image:
            if image.size != (header.width, header.height):
                raise ValueError(
                    f"its header says {header.height}x{header.width}, its data {image.height}x{image.width}"
                )
            return np.array(image.convert("RGB"))  # a copy: Pillow's own memory is read-only
    except UnidentifiedImageError:  # whose words hold an address in memory: never the same twice
        raise ValueError(f"{len(encoded)} bytes that are no image: no {header.kind} that Pillow reads") from None
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"an image of {len(encoded)} bytes cannot be decoded ({reason})") from None
