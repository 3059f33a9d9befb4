"""Framing: what is written is read back, and whatever is damaged, the rest is kept."""

from __future__ import annotations

import io
import struct

from hypothesis import given
from hypothesis import strategies as st

from preprocessing.tfds.tfrecord import Damage, Record, _candidates, masked_crc32c, read_records, skip_records
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


def test_each_fault_has_its_place_and_its_reason() -> None:
    good = frame_record(b"0123456789")
    header, payload, inside = bytearray(good), bytearray(good), bytearray(good)
    header[9] ^= 1
    payload[14] ^= 1
    records = [bytes(header), good, bytes(payload), good, bytes(inside[:20])]
    found = [(item.offset, item.reason) for item in read(b"".join(records)) if isinstance(item, Damage)]
    size = len(good)
    assert found == [
        (0, "the CRC of the length field does not match"),
        (2 * size, "the CRC of the record's 10 bytes does not match"),
        (4 * size, f"the file ends inside a record, after 20 of {size} bytes"),
    ]
    assert [item.reason for item in read(good[:5]) if isinstance(item, Damage)] == [
        "the file ends inside a record header, after 5 of 12 bytes"
    ]
    assert len(read(good)) == 1  # a record that ends with the file is whole


def test_without_the_check_a_damaged_payload_is_given_with_the_crc_of_the_file() -> None:
    damaged = bytearray(frame_record(b"abc") + frame_record(b"def"))
    damaged[12] ^= 1
    first, second = read(bytes(damaged), check_crc=False)
    assert isinstance(first, Record) and isinstance(second, Record)
    assert (first.offset, first.payload, first.crc) == (0, b"`bc", masked_crc32c(b"abc"))
    assert (second.offset, second.payload) == (len(damaged) // 2, b"def")


@given(PAYLOADS, st.data())
def test_reading_goes_on_where_skipping_ended(written: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(map(frame_record, written))
    count = data.draw(st.integers(0, len(written) + 1))
    start = skip_records(io.BytesIO(whole), len(whole), count)
    assert start == sum(len(frame_record(payload)) for payload in written[:count])
    assert payloads(list(read_records(io.BytesIO(whole), len(whole), start=start))) == written[count:]


def test_the_search_takes_lengths_of_one_byte_and_of_nearly_4_gib_for_plausible() -> None:
    assert _candidates(struct.pack("<QI", 1, 7)) == [0]
    assert _candidates(struct.pack("<QI", 2**32 - 1, 0)) == [0]
    assert _candidates(struct.pack("<QI", 2**32, 7)) == _candidates(struct.pack("<QI", 0, 0)) == []
    assert _candidates(bytes(11)) == []
