"""What a picture's header says, read before any decoder allocates: kind, size, bits a channel, EXIF orientation.

Read are JPEG, PNG, WebP, GIF and BMP of 8 bits a channel or fewer, with one frame and at most MOST_PIXELS pixels.
Everything else is a ValueError with the reason.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import simplejpeg
from PIL import Image

MOST_PIXELS = 2**25  # 33.5 million: 100 MB decoded. A photograph of a large camera fits, a frame of a robot has 0.3
JPEG, PNG, GIF, BMP = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", (b"GIF87a", b"GIF89a"), b"BM"
_PIXELS_PER_BYTE = 2048  # of a JPEG: a block of 64 pixels takes at least a bit; one colour alone comes to 340
_MOST_SCANS = 64  # of a progressive JPEG, each of which visits every pixel; encoders write about 10
_EXIF = b"Exif\0\0"
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")  # Pillow's modes

Kind = Literal["JPEG", "PNG", "WebP", "GIF", "BMP"]


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """`height` and `width` in pixels as the file stores them, `orientation` as EXIF counts: 1 upright, 5 to 8 lying."""

    kind: Kind
    height: int
    width: int
    orientation: int = 1

    @property
    def lying(self) -> bool:
        """Whether height and width change places when the picture is set upright."""
        return self.orientation >= 5


def read_header(encoded: bytes) -> ImageHeader:
    """The header of an encoded picture. Raises ValueError for what is none, or none that is read here."""
    if encoded.startswith(JPEG):
        header = _jpeg(encoded)
    elif encoded.startswith(PNG):
        header = _png(encoded)
    elif encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        header = _webp(encoded)
    elif encoded.startswith((*GIF, BMP)):
        header = _by_pillow(encoded)
    else:
        raise ValueError(f"{len(encoded)} bytes that are no image (JPEG, PNG, WebP, GIF and BMP are read)")
    _require_bearable(header.height, header.width)
    return header


def jpeg_orientation(encoded: bytes) -> int:
    """The EXIF orientation of a JPEG, 1 where it has none."""
    return _before_first_scan(encoded)[1]


def _require_bearable(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"the image is {height}x{width}: it has no pixels")
    if height * width > MOST_PIXELS:
        raise ValueError(
            f"the image claims {height}x{width}, {height * width} pixels, at most {MOST_PIXELS} are decoded: "
            f"make it smaller"
        )


def _require_eight_bits(bits: int, mode: str) -> None:
    """Which 8 of its bits would be the picture is not said anywhere: a depth image would come out all white."""
    if bits > 8:
        raise ValueError(f"the image has the mode {mode}, as depth images have: 8 bits a channel are needed")


def _jpeg(encoded: bytes) -> ImageHeader:
    try:  # what the decoder itself will allocate; KeyError is simplejpeg's for a file that ends before its size
        height, width = map(int, simplejpeg.decode_jpeg_header(encoded, strict=False)[:2])
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{len(encoded)} bytes that are no image: a JPEG without a readable header ({error})"
        ) from None
    bits, orientation, several_scans = _before_first_scan(encoded)
    _require_eight_bits(bits, f"JPEG;{bits}")
    if MOST_PIXELS >= height * width > _PIXELS_PER_BYTE * len(encoded):
        raise ValueError(f"the image claims {height}x{width} pixels, which {len(encoded)} bytes of JPEG cannot hold")
    if several_scans and (scans := encoded.count(b"\xff\xda")) > _MOST_SCANS:
        raise ValueError(f"the JPEG has {scans} scans, at most {_MOST_SCANS} are decoded")
    return ImageHeader(kind="JPEG", height=height, width=width, orientation=orientation)


def _before_first_scan(encoded: bytes) -> tuple[int, int, bool]:
    """(bits a channel, orientation, whether it has several scans) of a JPEG; markers are found as libjpeg finds them:
    whatever is none is passed over."""
    bits, orientation, components, progressive, place = 8, 0, 0, False, 2
    while 0 <= (place := encoded.find(b"\xff", place)) < len(encoded) - 4:
        marker, place = encoded[place + 1], place + 1
        if marker == 0xDA:
            return bits, orientation or 1, progressive or encoded[place + 3] < components
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD7:  # padding, and markers without a body
            place += marker != 0xFF
            continue
        body, length = place + 3, encoded[place + 1] << 8 | encoded[place + 2]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, components, progressive = encoded[body], encoded[body + 5 : body + 6] or b"\0", marker & 3 == 2
            components = components[0]
        elif marker == 0xE1 and not orientation and encoded.startswith(_EXIF, body):
            orientation = exif_orientation(encoded[body + 6 : place + 1 + length])
        place += 1 + max(length, 2)
    return bits, orientation or 1, progressive


def exif_orientation(tiff: bytes) -> int:
    """1 to 8 from EXIF's first directory (tag 0x0112); 1 where it is missing or makes no sense, as viewers do."""
    order = "little" if tiff.startswith(b"II*\0") else "big"
    if order == "big" and not tiff.startswith(b"MM\0*"):
        return 1
    first = int.from_bytes(tiff[4:8], order)
    count = int.from_bytes(tiff[first : first + 2], order)
    for place in range(first + 2, min(first + 2 + 12 * count, len(tiff) - 11), 12):
        if int.from_bytes(tiff[place : place + 2], order) == 0x0112:
            size = 4 if int.from_bytes(tiff[place + 2 : place + 4], order) == 4 else 2
            value = int.from_bytes(tiff[place + 8 : place + 8 + size], order)
            return value if 1 <= value <= 8 else 1
    return 1


def _png(encoded: bytes) -> ImageHeader:
    if encoded[12:16] != b"IHDR" or len(encoded) < 33:
        raise ValueError(f"{len(encoded)} bytes that are no image: a PNG without a header")
    bits, colour, orientation, place = encoded[24], encoded[25], 1, 8
    _require_eight_bits(bits, {0: "I;16", 2: "RGB;16", 4: "LA;16"}.get(colour, "RGBA;16"))
    while place + 8 <= len(encoded) and (name := encoded[place + 4 : place + 8]) != b"IEND":
        body, stop = place + 8, place + 8 + int.from_bytes(encoded[place : place + 4])
        if name == b"acTL" and int.from_bytes(encoded[body : body + 4]) > 1:
            raise _animated("PNG")
        if name == b"eXIf":
            orientation = exif_orientation(encoded[body:stop])
        place = stop + 4
    height, width = int.from_bytes(encoded[20:24]), int.from_bytes(encoded[16:20])
    return ImageHeader(kind="PNG", height=height, width=width, orientation=orientation)


def _webp(encoded: bytes) -> ImageHeader:
    first, flags, frames, orientation, place = encoded[12:16], encoded[20:21], 0, 1, 12
    if len(encoded) < 30:
        raise ValueError(f"{len(encoded)} bytes that are no image: a WebP without a header")
    if first == b"VP8X":
        height, width = _little(encoded[27:30]) + 1, _little(encoded[24:27]) + 1
    elif first == b"VP8L":
        packed = _little(encoded[21:25])
        height, width = (packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1
    else:
        height, width = _little(encoded[28:30]) & 0x3FFF, _little(encoded[26:28]) & 0x3FFF
    while first == b"VP8X" and place + 8 <= len(encoded):
        name, body, size = encoded[place : place + 4], place + 8, _little(encoded[place + 4 : place + 8])
        frames += name == b"ANMF"
        if name == b"EXIF":
            orientation = exif_orientation(encoded[body : body + size].removeprefix(_EXIF))
        place = body + size + size % 2
    if first == b"VP8X" and flags[0] & 2 and frames != 1:
        raise _animated("WebP")
    return ImageHeader(kind="WebP", height=height, width=width, orientation=orientation)


def _by_pillow(encoded: bytes) -> ImageHeader:
    """GIF and BMP, whose headers Pillow reads without allocating; a GIF's frames it counts without decoding them.
    The size is looked at before, since Pillow prints a warning about large ones."""
    kind: Kind = "BMP" if encoded.startswith(BMP) else "GIF"
    sides = (encoded[8:10], encoded[6:8]) if kind == "GIF" else (encoded[22:26], encoded[18:22])
    if kind == "GIF" or _little(encoded[14:18]) >= 40:
        _require_bearable(*(abs(int.from_bytes(side, "little", signed=kind == "BMP")) for side in sides))
    try:
        with Image.open(io.BytesIO(encoded), formats=[kind]) as image:
            frames = getattr(image, "n_frames", 1)
            if image.mode not in _EIGHT_BITS:
                raise ValueError(f"the mode {image.mode}")
    except Exception as error:  # Pillow's readers raise whatever they stumble over
        raise ValueError(f"{len(encoded)} bytes that are no image: a {kind} whose header cannot be read") from error
    if frames > 1:
        raise _animated(kind)
    return ImageHeader(kind=kind, height=image.height, width=image.width)


def _animated(kind: Kind) -> ValueError:
    return ValueError(f"the {kind} is animated, and one picture is needed: take a frame out of it")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
