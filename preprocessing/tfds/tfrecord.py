"""TFRecord framing: records of a file in order, with whatever is damaged reported and the rest kept.

A record is an 8-byte little-endian length, the masked CRC32C of those 8 bytes, the payload, and the payload's masked
CRC32C. A damaged payload leaves the framing intact. Where a length is damaged, the scan looks for the next offset whose
length field passes its CRC. Memory: one record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

import google_crc32c
import numpy as np

_HEADER_BYTES, _CRC_BYTES = 12, 4
_MASK_DELTA = 0xA282EAD8  # of the masked CRC in TensorFlow's record format
_SCAN_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A stretch of the file that holds no readable record; `offset` is where it begins, in bytes."""

    offset: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """One intact record; `offset` is where its header begins, in bytes; `crc` the CRC that the file holds for it."""

    offset: int
    payload: bytes
    crc: int


def masked_crc32c(data: bytes) -> int:
    """The CRC32C of `data`, rotated and offset as the record format stores it."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def read_records(file: BinaryIO, size: int, *, check_crc: bool = True, start: int = 0) -> Iterator[Record | Damage]:
    """Records of a seekable `file` of `size` bytes, from the one that begins at byte `start` on.

    A stretch without a readable header is reported once, however many headers in it are broken. `check_crc=False` skips
    the CRC of payloads, never that of lengths, on which the framing rests. The number of items does not depend on it.
    """
    for offset, length, fault in _frames(file, size, start):
        if fault:
            yield Damage(offset=offset, reason=fault)
            continue
        payload, crc = file.read(length), int.from_bytes(file.read(_CRC_BYTES), "little")
        if check_crc and masked_crc32c(payload) != crc:
            yield Damage(offset=offset, reason=f"the CRC of the record's {length} bytes does not match")
        else:
            yield Record(offset=offset, payload=payload, crc=crc)


def skip_records(file: BinaryIO, size: int, count: int) -> int:
    """The byte at which the item after the first `count` begins, or `size`; reads nothing but headers."""
    return next((offset for offset, _, _ in islice(_frames(file, size, 0), count, None)), size)


def _frames(file: BinaryIO, size: int, offset: int) -> Iterator[tuple[int, int, str | None]]:
    """(offset, payload bytes, None) of each record, the file standing at its payload; or (offset, 0, what is wrong)."""
    lost = False
    while offset < size:
        file.seek(offset)
        length, fault = _length(file.read(_HEADER_BYTES), size - offset)
        if not (fault and lost):
            yield offset, length, fault
        lost = fault is not None
        offset = _next_header(file, offset + 1, size) if lost else offset + _HEADER_BYTES + length + _CRC_BYTES


def _length(header: bytes, remaining: int) -> tuple[int, str | None]:
    """(payload bytes, None), or (0, what is wrong)."""
    if len(header) < _HEADER_BYTES:
        return 0, f"the file ends inside a record header, after {len(header)} of {_HEADER_BYTES} bytes"
    length, crc = struct.unpack("<QI", header)
    if masked_crc32c(header[:8]) != crc:
        return 0, "the CRC of the length field does not match"
    needed = _HEADER_BYTES + length + _CRC_BYTES
    if needed > remaining:
        return 0, f"the file ends inside a record, after {remaining} of {needed} bytes"
    return length, None


def _next_header(file: BinaryIO, start: int, size: int) -> int:
    """The next offset from `start` on that begins a plausible record, or `size`."""
    while start + _HEADER_BYTES + _CRC_BYTES <= size:
        file.seek(start)
        block = file.read(_SCAN_BYTES)
        for place in _candidates(block):
            if _length(block[place : place + _HEADER_BYTES], size - start - place)[1] is None:
                return start + place
        start += max(len(block) - _HEADER_BYTES + 1, 1)
    return size


def _candidates(block: bytes) -> list[int]:
    """Places whose 8 bytes could be a length above 0 and below 4 GiB: a vectorised sieve before the CRC in Python."""
    places = len(block) - _HEADER_BYTES + 1
    if places <= 0:
        return []
    nonzero = np.concatenate([[0], np.cumsum(np.frombuffer(block, np.uint8) != 0)])
    low = nonzero[4 : 4 + places] - nonzero[:places]
    high = nonzero[8 : 8 + places] - nonzero[4 : 4 + places]
    return np.flatnonzero((high == 0) & (low > 0)).tolist()
