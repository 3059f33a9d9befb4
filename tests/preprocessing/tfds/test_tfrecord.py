"""Framing: what is written is read back, and whatever is damaged, the rest is kept."""

from __future__ import annotations

import io
import struct

from hypothesis import given
from hypothesis import strategies as st

from preprocessing.tfds.tfrecord import Damage, Record, masked_crc32c, read_records
from tests.support.tiny_rlds import frame_record


def read(data: bytes, *, check_crc: bool = True) -> list[Record | Damage]:
    return list(read_records(io.BytesIO(data), len(data), check_crc=check_crc))


def payloads(items: list[Record | Damage]) -> list[bytes]:
    return [item.payload for item in items if isinstance(item, Record)]


PAYLOADS = st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=6)


def test_the_masked_crc_is_the_one_of_the_format() -> None:
    # An empty-length header as every TFRecord writer produces it: 8 zero bytes have this masked CRC32C.
    assert masked_crc32c(bytes(8)) == 0x07980329


@given(PAYLOADS, st.booleans())
def test_round_trip(written: list[bytes], check_crc: bool) -> None:
    assert payloads(read(b"".join(map(frame_record, written)), check_crc=check_crc)) == written


@given(PAYLOADS, st.data())
def test_one_flipped_bit_costs_one_record(written: list[bytes], data: st.DataObject) -> None:
    whole = bytearray(b"".join(map(frame_record, written)))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    starts = [sum(len(frame_record(p)) for p in written[:i]) for i in range(len(written))]
    hit = max(i for i, start in enumerate(starts) if start <= place)
    items = read(bytes(whole))
    assert payloads(items) == written[:hit] + written[hit + 1 :]
    damage = [item for item in items if isinstance(item, Damage)]
    assert [item.offset for item in damage] == [starts[hit]]


@given(PAYLOADS, st.data())
def test_a_truncated_tail_is_one_damage(written: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(map(frame_record, written))
    cut = data.draw(st.integers(1, len(whole) - 1))
    ends = [sum(len(frame_record(p)) for p in written[: i + 1]) for i in range(len(written))]
    kept = sum(end <= cut for end in ends)
    items = read(whole[:cut])
    assert payloads(items) == written[:kept]
    assert len(items) == kept + (cut not in ends)


def test_a_lying_length_with_a_good_crc_does_not_swallow_what_follows() -> None:
    lie = struct.pack("<Q", 1 << 40)
    lying = lie + struct.pack("<I", masked_crc32c(lie)) + b"x" * 30
    items = read(frame_record(b"before") + lying + frame_record(b"after"))
    assert payloads(items) == [b"before", b"after"]
    assert [type(item) for item in items] == [Record, Damage, Record]


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_end(data: bytes, check_crc: bool) -> None:
    items = read(data, check_crc=check_crc)
    offsets = [item.offset for item in items]
    assert offsets == sorted(set(offsets))


def test_resynchronises_across_the_blocks_of_the_scan(monkeypatch) -> None:
    monkeypatch.setattr("preprocessing.tfds.tfrecord._SCAN_BYTES", 32)
    broken = bytearray(frame_record(b"y" * 100))
    broken[3] ^= 255
    assert payloads(read(bytes(broken) + frame_record(b"z"))) == [b"z"]
