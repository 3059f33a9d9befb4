"""Camera frames as encoded bytes: their size, decoding, and the three ways of resizing.

JPEG goes through libjpeg-turbo, everything else through Pillow. Axes: H height, W width, C colour.
"""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image

Resize = Literal["pad", "squash", "crop"]

JPEG_QUALITY = 95
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_JPEG_END, _PNG_END = b"\xff\xd9", b"IEND\xaeB`\x82"


def image_size(encoded: bytes) -> tuple[int, int]:
    """(height, width) from the header alone. Raises ValueError where the bytes are no image."""
    if encoded.startswith(_JPEG):
        height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
        return int(height), int(width)
    if encoded.startswith(_PNG) and len(encoded) >= 24:
        return int.from_bytes(encoded[20:24], "big"), int.from_bytes(encoded[16:20], "big")
    with _opened(encoded) as image:
        return image.height, image.width


def require_whole_image(encoded: bytes) -> None:
    """Raise ValueError for a frame that was cut off or cannot be decoded. One that ends as its format does is not
    decoded for it: a look at the last bytes."""
    if not encoded.startswith((_JPEG, _PNG)) or not encoded.endswith((_JPEG_END, _PNG_END)):
        decode_image(encoded)


def decode_image(encoded: bytes) -> np.ndarray:
    """uint8 (H, W, 3) RGB. Raises ValueError where the bytes are no image."""
    if encoded.startswith(_JPEG):
        return simplejpeg.decode_jpeg(encoded, colorspace="RGB", fastdct=False, fastupsample=False)
    with _opened(encoded) as image:
        try:
            return np.array(image.convert("RGB"))  # a copy: Pillow's own memory is read-only
        except Exception as error:  # Pillow's decoders raise whatever they stumble over
            raise ValueError(f"an image of {len(encoded)} bytes cannot be decoded ({error})") from None


def decode_into(encoded: bytes, image_HWC: np.ndarray) -> tuple[int, int]:
    """Decode into contiguous uint8 (H, W, 3); its own (height, width), with rubbish written where they differ."""
    if encoded.startswith(_JPEG):
        try:
            decoded = simplejpeg.decode_jpeg(
                encoded, colorspace="RGB", fastdct=False, fastupsample=False, buffer=image_HWC
            )
        except ValueError:
            size = image_size(encoded)
            if size == image_HWC.shape[:2]:
                raise
            return size
        return decoded.shape[0], decoded.shape[1]
    decoded = decode_image(encoded)
    if decoded.shape == image_HWC.shape:
        image_HWC[:] = decoded
    return decoded.shape[0], decoded.shape[1]


def encode_jpeg(image_HWC: np.ndarray) -> bytes:
    """JPEG of quality 95 without colour subsampling, from uint8 (H, W, 3) RGB."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image_HWC), quality=JPEG_QUALITY, colorsubsampling="444")


def encode_png(image_HWC: np.ndarray) -> bytes:
    """PNG, which loses nothing, from uint8 (H, W, 3) RGB or (H, W, 1) grey."""
    image, out = Image.fromarray(image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC), io.BytesIO()
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


def reencode(encoded: bytes, height: int, width: int, how: Resize) -> bytes:
    """The frame at another size; bytes that have it already pass through untouched.

    A JPEG of more than twice the size is decoded at a reduced scale, which libjpeg does in the frequency domain.
    """
    source_height, source_width = image_size(encoded)
    if (source_height, source_width) == (height, width):
        return encoded
    if not encoded.startswith(_JPEG):
        return encode_jpeg(resize_image(decode_image(encoded), height, width, how))
    ratio = min(height / source_height, width / source_width) if how == "pad" else 0
    enough = (round(source_height * ratio), round(source_width * ratio)) if ratio else (height, width)
    image_HWC = simplejpeg.decode_jpeg(encoded, colorspace="RGB", min_height=enough[0], min_width=enough[1])
    return encode_jpeg(resize_image(image_HWC, height, width, how))


def _opened(encoded: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded))
    except Exception as error:
        reason = f" ({error})" if isinstance(error, Image.DecompressionBombError) else ""
        raise ValueError(f"{len(encoded)} bytes that are no image Pillow can read{reason}") from None
