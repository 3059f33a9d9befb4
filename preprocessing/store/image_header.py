"""What a picture's header says, read before any decoder allocates: kind, size, bits a channel, EXIF orientation.

Read are JPEG, PNG, WebP, GIF and BMP of 8 bits a channel or fewer, with one frame and at most MOST_PIXELS pixels.
Everything else is a ValueError with the reason.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import simplejpeg
from PIL import Image

MOST_PIXELS = 2**25  # 33.5 million: 100 MB decoded. A photograph of a large camera fits, a frame of a robot has 0.3
JPEG, PNG, GIF, BMP = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", (b"GIF87a", b"GIF89a"), b"BM"
_PIXELS_PER_BYTE = 2048  # of a JPEG: a block of 64 pixels takes at least a bit; one colour alone comes to 340
_MOST_SCANS = 64  # of a progressive JPEG, each of which visits every pixel; encoders write about 10
_MOST_SEGMENTS = 1024  # of a JPEG before its first scan; a colour profile takes up to 255, a camera's note a few more
_MOST_CHUNKS = 2**15  # of a PNG or WebP: encoders write 8 KB or a row of pixels in each
_EXIF = b"Exif\0\0"
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe](?=..)", re.DOTALL)  # that a segment's length follows
_SCAN, _END, _FRAMES = 0xDA, 0xD9, {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")  # Pillow's modes

# The beginning of the JPEG read last, through the header of its scan, what it says, and how many bytes such a picture
# needs at least. Frames of one camera begin alike, so that comparing 600 bytes takes the place of two parsers.
_MOST_REMEMBERED = 2**16  # bytes
_recent: tuple[bytes, ImageHeader, int] | None = None

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
    recent = _recent  # which another thread may set
    if recent is not None and encoded.startswith(recent[0]) and len(encoded) >= recent[2]:
        return recent[1]
    if encoded.startswith(JPEG):
        return _jpeg(encoded)
    if encoded.startswith(PNG):
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
    """The EXIF orientation of a JPEG, 1 if it has none. EXIF stands before anything that looks like a scan, as its
    standard asks, so that a frame without it is known by a search of its first bytes: 1 us, a walk takes 8."""
    if encoded.find(_EXIF, 0, encoded.find(b"\xff\xda")) < 0:
        return 1
    for marker, start, stop in jpeg_segments(encoded):
        if marker == 0xE1 and encoded.startswith(_EXIF, start + 4):
            return exif_orientation(encoded[start + 10 : stop])
    return 1


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
    global _recent
    header, end = _jpeg_header(encoded)
    _require_bearable(header.height, header.width)
    least_bytes = -(-header.height * header.width // _PIXELS_PER_BYTE)
    if 0 < end <= _MOST_REMEMBERED:
        _recent = encoded[:end], header, least_bytes
    if len(encoded) < least_bytes:
        raise ValueError(
            f"the image claims {header.height}x{header.width} pixels, which {len(encoded)} bytes of JPEG cannot hold"
        )
    return header


def _jpeg_header(encoded: bytes) -> tuple[ImageHeader, int]:
    """The header of a JPEG, and after how many bytes nothing more can change it; 0 where the whole file counts."""
    try:  # what the decoder itself will allocate; KeyError is simplejpeg's for a file that ends before its size
        height, width = map(int, simplejpeg.decode_jpeg_header(encoded, strict=False)[:2])
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{len(encoded)} bytes that are no image: a JPEG without a readable header ({error})"
        ) from None
    bits, several_scans, end = _before_first_scan(encoded)
    _require_eight_bits(bits, f"JPEG;{bits}")
    if several_scans and (scans := encoded.count(b"\xff\xda")) > _MOST_SCANS:
        raise ValueError(f"the JPEG has {scans} scans, at most {_MOST_SCANS} are decoded")
    header = ImageHeader(kind="JPEG", height=height, width=width, orientation=jpeg_orientation(encoded))
    return header, 0 if several_scans else end


def _before_first_scan(encoded: bytes) -> tuple[int, bool, int]:
    """(bits a channel, whether it has several scans, the byte after the header of the first) of a JPEG. The last is 0
    where another place looks like a scan: what decoders take for the header is then not sure."""
    bits, components, progressive, scan, end = 8, 0, False, 0, 0
    for marker, start, stop in jpeg_segments(encoded):
        if marker == _SCAN:
            scan = start
            end = stop if encoded.find(b"\xff\xda") == start and stop <= len(encoded) else 0
        elif marker in _FRAMES and stop - start > 9:
            bits, components, progressive = encoded[start + 4], encoded[start + 9], marker & 3 == 2
    return bits, progressive or encoded[scan + 4 : scan + 5] < bytes([components]), end


def jpeg_segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, first byte, byte after the last) of each segment of a JPEG up to its first scan, found as libjpeg
    finds them: whatever is none is passed over."""
    place = 2
    for _ in range(_MOST_SEGMENTS):
        match = _MARKER.search(encoded, place)
        if match is None or (marker := encoded[match.start() + 1]) == _END:
            return
        start = match.start()
        place = start + 2 + max(encoded[start + 2] << 8 | encoded[start + 3], 2)
        yield marker, start, place
        if marker == _SCAN:
            return
    raise ValueError(f"the JPEG has more than {_MOST_SEGMENTS} segments before its first scan")


def tidied(encoded: bytes) -> bytes:
    """A JPEG without what its header may hold and no decoder heeds: bytes between segments, a revision of JFIF above 1,
    and a range of coefficients in the scan of a sequential picture, which always has all 64."""
    pieces = [encoded[:2]]
    sequential = False
    stop = 2
    for marker, start, stop in jpeg_segments(encoded):
        piece = encoded[start:stop]
        sequential = sequential or marker in (0xC0, 0xC1)
        if marker == 0xE0 and piece.startswith(b"JFIF\0", 4):
            piece = piece[:9] + b"\1" + piece[10:]
        elif marker == _SCAN and sequential:
            piece = piece[:-3] + b"\0\x3f\0"
        pieces.append(piece)
    return b"".join(pieces) + encoded[stop:]


def exif_orientation(tiff: bytes) -> int:
    """1 to 8 from EXIF's first directory (tag 0x0112); 1 if it is missing or makes no sense, as viewers do."""
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
    bits = encoded[24]
    colour = encoded[25]
    orientation = 1
    _require_eight_bits(bits, {0: "I;16", 2: "RGB;16", 4: "LA;16"}.get(colour, "RGBA;16"))
    for name, start, stop in _chunks(encoded, 8, "PNG"):
        if name == b"acTL" and int.from_bytes(encoded[start : start + 4]) > 1:
            raise _animated("PNG")
        if name == b"eXIf":
            orientation = exif_orientation(encoded[start:stop])
        if name == b"IEND":
            break
    height, width = int.from_bytes(encoded[20:24]), int.from_bytes(encoded[16:20])
    return ImageHeader(kind="PNG", height=height, width=width, orientation=orientation)


def _webp(encoded: bytes) -> ImageHeader:
    first = encoded[12:16]
    frames = 0
    orientation = 1
    if len(encoded) < 30:
        raise ValueError(f"{len(encoded)} bytes that are no image: a WebP without a header")
    if first == b"VP8X":
        height, width = _little(encoded[27:30]) + 1, _little(encoded[24:27]) + 1
    elif first == b"VP8L":
        packed = _little(encoded[21:25])
        height, width = (packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1
    else:
        height, width = _little(encoded[28:30]) & 0x3FFF, _little(encoded[26:28]) & 0x3FFF
    for name, start, stop in _chunks(encoded, 12, "WebP") if first == b"VP8X" else ():
        frames += name == b"ANMF"
        if name == b"EXIF":
            orientation = exif_orientation(encoded[start:stop].removeprefix(_EXIF))
    if first == b"VP8X" and encoded[20] & 2 and frames != 1:
        raise _animated("WebP")
    return ImageHeader(kind="WebP", height=height, width=width, orientation=orientation)


def _chunks(encoded: bytes, place: int, kind: Literal["PNG", "WebP"]) -> Iterator[tuple[bytes, int, int]]:
    """(name, first byte, byte after the last) of the body of each chunk of a PNG, or of a WebP from byte `place` on."""
    for _ in range(_MOST_CHUNKS):
        if place + 8 > len(encoded):
            return
        front, back, start = encoded[place : place + 4], encoded[place + 4 : place + 8], place + 8
        if kind == "PNG":
            name = back
            stop = start + int.from_bytes(front)
            place = stop + 4  # its CRC
        else:
            name = front
            stop = start + _little(back)
            place = stop + (stop - start) % 2
        yield name, start, stop
    raise ValueError(f"the {kind} has more than {_MOST_CHUNKS} chunks")


def _by_pillow(encoded: bytes) -> ImageHeader:
    """GIF and BMP, whose headers Pillow reads without allocating; a second frame of a GIF it finds undecoded.
    The size is looked at before, since Pillow prints a warning about large ones."""
    kind: Kind = "BMP" if encoded.startswith(BMP) else "GIF"
    sides = (encoded[8:10], encoded[6:8]) if kind == "GIF" else (encoded[22:26], encoded[18:22])
    if kind == "GIF" or _little(encoded[14:18]) >= 40:
        _require_bearable(*(abs(int.from_bytes(side, "little", signed=kind == "BMP")) for side in sides))
    try:
        with Image.open(io.BytesIO(encoded), formats=[kind]) as image:
            animated = getattr(image, "is_animated", False)
            if image.mode not in _EIGHT_BITS:
                raise ValueError(f"the mode {image.mode}")
    except Exception as error:  # Pillow's readers raise whatever they stumble over
        raise ValueError(f"{len(encoded)} bytes that are no image: a {kind} whose header cannot be read") from error
    if animated:
        raise _animated(kind)
    return ImageHeader(kind=kind, height=image.height, width=image.width)


def _animated(kind: Kind) -> ValueError:
    return ValueError(f"the {kind} is animated, and one picture is needed: take a frame out of it")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
