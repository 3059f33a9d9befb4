"""What a picture looks like in 64 bits and a thumbnail: equal or near for copies of it, whatever their size and codec.

The bits are a perceptual hash of the luma (DCT of a 32x32 thumbnail, its 8x8 lowest frequencies against their median).
They know no colour and say little of flat pictures, so that a thumbnail of 8x8 RGB has to agree too.

Axes: N pictures, K numbers of a thumbnail.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from preprocessing.store.images import thumbnail

HASH_BITS = 64
THUMBNAIL_NUMBERS = 8 * 8 * 3
_SIDE = 32
_LUMA = np.array([0.299, 0.587, 0.114])
_FLAT = 1.0  # a smaller coefficient is rounding, whose sign says nothing
_LEVELS = 12  # of 255: a copy at JPEG quality 60 and half the size differs by at most 9 in any cell (ten photographs)


class PictureSignature(NamedTuple):
    """`bits` uint64 as an int; `thumbnail` uint8 (K,) as bytes."""

    bits: int
    thumbnail: bytes


def signature(encoded: bytes) -> PictureSignature:
    """The signature of an encoded picture. Raises ValueError if it cannot be decoded."""
    small = thumbnail(encoded, _SIDE)
    cells = small.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    low = _DCT @ (small @ _LUMA) @ _DCT.T
    low[np.abs(low) < _FLAT] = 0
    low[0, 0] = 0  # the mean brightness
    above = (low > np.median(low)).ravel()
    return PictureSignature(
        int.from_bytes(np.packbits(above).tobytes(), "big"), np.rint(cells).astype(np.uint8).tobytes()
    )


def are_near(
    bits: np.uint64, thumbnail_K: np.ndarray, bits_N: np.ndarray, thumbnails_NK: np.ndarray, *, distance: int
) -> np.ndarray:
    """bool (N,): which pictures one is a copy of: their hashes differ in at most `distance` bits, and no cell of their
    thumbnails by more than 12 levels in a channel."""
    near_N = np.bitwise_count(bits_N ^ bits) <= distance
    if near_N.any():
        difference = np.abs(thumbnails_NK[near_N].astype(np.int16) - thumbnail_K)
        near_N[near_N] = difference.max(axis=1) <= _LEVELS
    return near_N


def _dct_rows(count: int, side: int) -> np.ndarray:
    """The first rows of the orthonormal DCT-II of `side` values."""
    frequency, place = np.arange(count)[:, None], np.arange(side)[None]
    rows = np.sqrt(2 / side) * np.cos(np.pi * (place + 0.5) * frequency / side)
    rows[0] /= np.sqrt(2)
    return rows


_DCT = _dct_rows(8, _SIDE)
