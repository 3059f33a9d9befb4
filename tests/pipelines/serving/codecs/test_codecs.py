"""The bytes of the three codecs: as other implementations write them, there and back, and what no codec lets in."""

from __future__ import annotations

import base64
import contextlib
import json
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipelines.serving.codecs import json_numpy, openpi, vla_eval
from pipelines.serving.codecs.arrays import array_of
from pipelines.serving.refusal import Refusal

# What openpi-client 0.1.2 sends for {"image": uint8 (1, 2, 3) of 0..5, "prompt": "hi"}.
OPENPI = (
    b"\x82\xa5image\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x06\x00\x01\x02\x03\x04\x05"
    b"\xc4\x05dtype\xa3|u1\xc4\x05shape\x93\x01\x02\x03\xa6prompt\xa2hi"
)
NUMBERS = arrays.arrays(
    st.sampled_from(["|u1", "<i8", "<f4", "<f8", "|b1", "<u2", "<f2"]),
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


def test_openpi_s_bytes_are_those_of_its_client() -> None:
    fields = {"image": np.arange(6, dtype=np.uint8).reshape(1, 2, 3), "prompt": "hi"}
    assert openpi.pack(fields) == OPENPI
    read = openpi.unpack(OPENPI)
    np.testing.assert_array_equal(read["image"], fields["image"])  # type: ignore[arg-type]
    assert read["prompt"] == "hi"


@given(NUMBERS)
def test_arrays_come_back(array: np.ndarray) -> None:
    for read in (
        openpi.unpack(openpi.pack({"a": {"b": array}}))["a"]["b"],  # type: ignore[index]
        json_numpy.read(json.dumps({"a": json_numpy.array(array)}))["a"],
        vla_eval.unpack(vla_eval.pack(vla_eval.Message(type="t", payload={"a": array}, seq=3))).payload["a"],
    ):
        assert read.dtype == array.dtype and read.shape == array.shape  # type: ignore[union-attr]
        np.testing.assert_array_equal(read, array)  # type: ignore[arg-type]


def test_numpy_s_scalars_and_other_byte_orders_are_read() -> None:
    scalar = {b"__npgeneric__": True, b"data": 2.5, b"dtype": "<f8"}
    big = {b"__ndarray__": True, b"data": np.arange(3, dtype=">f4").tobytes(), b"dtype": ">f4", b"shape": [3]}
    read = openpi.unpack(msgpack.packb({"s": scalar, "a": big}))  # type: ignore[arg-type]
    assert read["s"] == 2.5 and read["a"].dtype.isnative and list(read["a"]) == [0, 1, 2]  # type: ignore[union-attr,call-overload]


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        ("|O", [1], b"\1" * 8),
        ("|V8", [1], b"\1" * 8),
        ("<M8[ns]", [1], b"\1" * 8),
        ("u1,u1", [4], b"\1" * 8),
        ("<U2", [1], b"\1" * 8),
        ("<c8", [1], b"\1" * 8),
        ("|S8", [1], b"\1" * 8),
        ([["a", "|O"]], [1], b"\1" * 8),
        (None, [1], b"\1" * 8),
        ("|u1", [-1], b"\1" * 8),
        ("|u1", [True, 8], b"\1" * 8),
        ("|u1", [2.0, 4], b"\1" * 8),
        ("|u1", [2**62, 2**62], b"\1" * 8),
        ("|u1", [1] * 9, b"\1"),
        ("|u1", None, b"\1" * 8),
        ("|u1", 8, b"\1" * 8),
        ("|u1", [8], "12345678"),
        ("|u1", [8], None),
        ("<f4", [8], b"\1" * 8),
    ],
)
def test_an_array_that_is_none_is_refused_before_numpy_sees_it(dtype: Any, shape: Any, data: Any) -> None:
    with pytest.raises(ValueError):
        array_of(dtype, shape, data)
    hostile = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    with pytest.raises(Refusal) as caught:
        openpi.unpack(msgpack.packb({"seen": {"image": hostile}}))  # type: ignore[arg-type]
    assert caught.value.field == "seen.image"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\x91" * 2000 + b"\xc0",
        b"\x01",
        b"\x81\x01\x02",
        b"\x81\xa1a",
        b"\x81\xa1\xff\xc0",
        OPENPI + b"\x00",
        OPENPI[:-1],
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xd4\x01\x00",
        msgpack.packb([1, 2]),
        msgpack.packb({"a": {b"b": 1}}),
    ],
)
def test_what_is_no_message_is_refused(message: bytes) -> None:
    for unpack in (openpi.unpack, vla_eval.unpack):
        with pytest.raises(Refusal):
            unpack(message)


def test_many_small_parts_cost_no_memory() -> None:
    tracemalloc.start()
    for parts in (b"\x90", b"\x80", b"\x91\x90"):
        with pytest.raises(Refusal):
            openpi.unpack(b"\x81\xa1a\xdd" + (90_000).to_bytes(4, "big") + parts * 90_000)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@given(st.data())
def test_a_message_with_any_bytes_changed_is_read_or_refused(data: st.DataObject) -> None:
    harness = vla_eval.pack(
        vla_eval.Message(type="observation", payload={"images": {"a": np.zeros((2, 2, 3), "u1")}}, seq=1)
    )
    array = json_numpy.array(np.zeros((2, 2, 3), np.uint8))
    cases = [(OPENPI, openpi.unpack), (harness, vla_eval.unpack), (json.dumps({"a": array}).encode(), json_numpy.read)]
    valid, read = data.draw(st.sampled_from(cases))
    changed = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Refusal):
        read(bytes(changed[: data.draw(st.integers(0, len(changed)))]))  # type: ignore[operator]


def test_the_harness_s_images_stay_encoded_until_their_header_is_read() -> None:
    image = {"__image__": True, "format": "png", "data": b"not yet looked at", "shape": [9, 9, 3]}
    raw = {"__image__": True, "format": "raw", "dtype": "|u1", "data": bytes(12), "shape": [2, 2, 3]}
    envelope = {"type": "observation", "payload": {"images": {"a": image, "b": raw}}, "seq": 1}
    images = vla_eval.unpack(msgpack.packb(envelope)).payload["images"]  # type: ignore[arg-type]
    assert images["a"] == b"not yet looked at" and images["b"].shape == (2, 2, 3)  # type: ignore[index]
    wrong = image | {"format": "tiff"}
    with pytest.raises(Refusal) as caught:
        vla_eval.unpack(msgpack.packb(envelope | {"payload": {"images": {"a": wrong}}}))  # type: ignore[arg-type]
    assert caught.value.field == "payload.images.a"


@pytest.mark.parametrize(
    "content",
    [
        {"__numpy__": 7, "dtype": "|u1", "shape": [1]},
        {"__numpy__": "é", "dtype": "|u1", "shape": [1]},
        {"__numpy__": base64.b64encode(b"\1" * 8).decode(), "dtype": "|O", "shape": [1]},
    ],
)
def test_json_arrays_are_as_strict(content: dict[str, Any]) -> None:
    with pytest.raises(Refusal) as caught:
        json_numpy.read(json.dumps({"image": content}))
    assert caught.value.field == "image"
