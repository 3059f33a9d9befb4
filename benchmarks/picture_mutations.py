"""Damaged pictures under the one rule for pictures: no crash, bounded time and memory, one answer for all readers.

A case damages a JPEG, PNG, WebP, GIF or BMP in one of the ways below. What `require_whole_image` lets in must be
decoded by `decode_image` and `decode_into` to the same pixels, of the size that `image_size` read from the header; what
it refuses must be refused by `decode_image` too.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from PIL import Image

from preprocessing.store.images import decode_image, decode_into, image_size, require_whole_image

MOST_SECONDS, MOST_MEMORY_MB = 5.0, 1024
# Where a header says its size: the mark before it, the bytes from there, bytes of a side, their order.
SIZES: tuple[tuple[bytes, int, int, Literal["big", "little"]], ...] = (
    (b"\xff\xc0", 5, 2, "big"),
    (b"\xff\xc2", 5, 2, "big"),
    (b"IHDR", 4, 4, "big"),
    (b"GIF", 6, 2, "little"),
    (b"BM", 18, 4, "little"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000, help="damaged pictures (default: 3000)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: 0)")
    arguments = parser.parse_args()
    rng, ends, seconds = np.random.default_rng(arguments.seed), Counter(), []
    pictures = _pictures(rng)
    before_mb = _peak_mb()
    for number in range(arguments.count):
        picture = list(pictures)[number % len(pictures)]
        kind = list(KINDS)[int(rng.integers(len(KINDS)))]
        damaged = KINDS[kind](pictures[picture], rng)
        began = time.perf_counter()
        ends[kind, _outcome(damaged)] += 1
        seconds.append(time.perf_counter() - began)
    for (kind, outcome), count in sorted(ends.items()):
        print(f"{kind:16} {outcome:12} {count:5}")
    grown_mb = _peak_mb() - before_mb
    print(f"{arguments.count} damaged pictures: slowest {max(seconds):.2f} s, {grown_mb:.0f} MB above the beginning")
    assert max(seconds) < MOST_SECONDS and grown_mb < MOST_MEMORY_MB
    print(json.dumps({"benchmark": "picture_mutations", "count": arguments.count, "seed": arguments.seed}))


def _outcome(encoded: bytes) -> str:
    """What came of a picture. Raises AssertionError where two readers disagree, and whatever is no ValueError."""
    try:
        require_whole_image(encoded)
    except ValueError:
        try:
            decode_image(encoded)
        except ValueError:
            return "refused"
        raise AssertionError(f"refused at the door, and yet decoded: {encoded.hex()}") from None
    image_HWC = decode_image(encoded)
    buffer_HWC = np.zeros_like(image_HWC)
    sizes = {image_size(encoded), image_HWC.shape[:2], decode_into(encoded, buffer_HWC)}
    assert len(sizes) == 1 and np.array_equal(image_HWC, buffer_HWC), f"readers disagree: {encoded.hex()}"
    return "read by all"


def _pictures(rng: np.random.Generator) -> dict[str, bytes]:
    coarse = Image.fromarray(rng.integers(0, 255, (6, 9, 3), dtype=np.uint8))
    scene = coarse.resize((72, 48))
    return {
        "JPEG": _saved(scene, "JPEG"),
        "JPEG progressive": _saved(scene, "JPEG", progressive=True),
        "JPEG with restarts": _saved(scene, "JPEG", restart_marker_blocks=2),
        "JPEG in CMYK": _saved(scene.convert("CMYK"), "JPEG"),
        "PNG": _saved(scene, "PNG"),
        "PNG with palette": _saved(scene.convert("P"), "PNG"),
        "WebP": _saved(scene, "WebP"),
        "WebP lossless": _saved(scene, "WebP", lossless=True),
        "GIF": _saved(scene, "GIF"),
        "BMP": _saved(scene, "BMP"),
    }


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    page = io.BytesIO()
    image.save(page, kind, **options)
    return page.getvalue()


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# --- Kinds of damage: (picture, random numbers) -> damaged picture ---


def _cut(picture: bytes, rng: np.random.Generator) -> bytes:
    return picture[: rng.integers(len(picture))]


def _cut_with_end(picture: bytes, rng: np.random.Generator) -> bytes:
    return picture[: rng.integers(len(picture))] + picture[-12:]


def _flip(picture: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(picture)
    for _ in range(rng.integers(1, 5)):
        damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _splice(picture: bytes, rng: np.random.Generator) -> bytes:
    """Bytes inserted, or left out, somewhere."""
    place, length = rng.integers(len(picture)), int(rng.integers(1, 40))
    noise = rng.bytes(length) if rng.random() < 0.5 else b""
    return picture[:place] + noise + picture[place + (0 if noise else length) :]


def _stray(picture: bytes, rng: np.random.Generator) -> bytes:
    """Bytes before the end marker of a JPEG, or after the whole of another kind."""
    noise = bytes(int(rng.integers(1, 40)))
    return picture[:-2] + noise + picture[-2:] if picture.startswith(b"\xff\xd8") else picture + noise


def _marker(picture: bytes, rng: np.random.Generator) -> bytes:
    """A JPEG's marker where none belongs."""
    place = int(rng.integers(len(picture)))
    return picture[:place] + bytes([255, int(rng.integers(0xC0, 256))]) + picture[place + 2 * int(rng.integers(2)) :]


def _claim(picture: bytes, rng: np.random.Generator) -> bytes:
    """A header that names another size."""
    found = [(picture.find(mark, 0, 1000), *rest) for mark, *rest in SIZES]
    place, offset, width, order = next((row for row in found if row[0] >= 0), (20, 3, 3, "little"))  # or a WebP's
    side = int(rng.choice([0, 1, 47, 100, 5_000, 30_000, 65_535]))
    start = place + offset + width * int(rng.integers(2))
    return picture[:start] + side.to_bytes(width, order) + picture[start + width :]


def _turn(picture: bytes, rng: np.random.Generator) -> bytes:
    """An EXIF orientation, of a thumbnail's picture or of none, and sometimes a damaged EXIF."""
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(0, 12))
    image = Image.open(io.BytesIO(picture))
    kind = image.format if image.format in ("JPEG", "PNG", "WEBP") else "PNG"
    turned = _saved(image.convert("RGB"), kind, exif=exif)
    return turned if rng.random() < 0.7 else _flip(turned[:80], rng) + turned[80:]


KINDS: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "cut": _cut,
    "cut with an end": _cut_with_end,
    "bits": _flip,
    "splice": _splice,
    "stray bytes": _stray,
    "markers": _marker,
    "claimed size": _claim,
    "orientation": _turn,
}

if __name__ == "__main__":
    main()
