"""Our message types agree with those of tensorflow_datasets; malformed bytes are refused with a ValueError."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from preprocessing.tfds.features import Feature
from preprocessing.tfds.tf_example import parse

INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False)
LISTS = st.one_of(
    st.tuples(st.just("bytes"), st.lists(st.binary(max_size=20), max_size=5)),
    st.tuples(st.just("float"), st.lists(FLOAT32, max_size=300)),
    st.tuples(st.just("int64"), st.lists(INT64, max_size=20)),
)


def message(lists: dict[str, tuple[str, list]]) -> bytes:
    example = tf_example_pb2.Example()
    for name, (kind, values) in lists.items():
        getattr(example.features.feature[name], f"{kind}_list").value.extend(values)
    return example.SerializeToString()


@given(st.dictionaries(st.text(max_size=12), LISTS, max_size=6))
def test_agrees_with_the_types_of_tensorflow_datasets(lists: dict[str, tuple[str, list]]) -> None:
    example = parse(message(lists))
    assert set(example.lists) == set(lists)
    for name, (kind, values) in lists.items():
        found = {"bytes": example.bytes, "float": example.floats, "int64": example.ints}[kind](name)
        expected = values if kind == "bytes" else np.array(values, {"float": np.float32, "int64": np.int64}[kind])
        np.testing.assert_array_equal(found, expected)


def test_reads_values_that_are_not_packed() -> None:
    # field 2 (float_list) { field 1 fixed32 1.5, field 1 fixed32 -2 } and field 3 (int64_list) { 1: 300, 1: 7 }
    floats = b"\x12\x0a" + b"\x0d" + np.float32(1.5).tobytes() + b"\x0d" + np.float32(-2).tobytes()
    ints = b"\x1a\x05" + b"\x08\xac\x02" + b"\x08\x07"
    both = tf_example_pb2.Example(
        features=tf_feature_pb2.Features(
            feature={
                "f": tf_feature_pb2.Feature.FromString(floats),
                "i": tf_feature_pb2.Feature.FromString(ints),
            }
        )
    )
    assert both.features.feature["i"].int64_list.value[:] == [300, 7]
    entries = b""
    for name, feature in ((b"f", floats), (b"i", ints)):
        entry = b"\x0a\x01" + name + b"\x12" + bytes([len(feature)]) + feature
        entries += b"\x0a" + bytes([len(entry)]) + entry
    example = parse(b"\x0a" + bytes([len(entries)]) + entries)
    assert example.floats("f").tolist() == [1.5, -2]
    assert example.ints("i").tolist() == [300, 7]


def test_another_type_than_expected_is_refused() -> None:
    example = parse(message({"action": ("bytes", [b"no numbers"])}))
    with pytest.raises(ValueError, match="action is a list of bytes, expected float32"):
        example.floats("action")


def test_looking_for_an_absent_list_does_not_add_it() -> None:
    example = parse(message({"action": ("float", [1.0])}))
    with pytest.raises(KeyError, match="reward"):
        example.floats("reward")
    assert "reward" not in example and len(example.lists) == 1


def test_a_message_that_is_cut_short_is_refused_with_its_size() -> None:
    whole = message({"action": ("float", [1.0, 2.0])})
    with pytest.raises(ValueError, match=f"its {len(whole) - 1} bytes are no tf.train.Example message"):
        parse(whole[:-1])


def test_a_number_among_bytes_leaves_too_few_values_for_the_feature() -> None:
    value = b"\x0a\x02" + b"\x08\x07"  # bytes_list { field 1 varint 7 }
    entry = b"\x0a\x01x" + b"\x12" + bytes([len(value)]) + value
    inner = b"\x0a" + bytes([len(entry)]) + entry
    example = parse(b"\x0a" + bytes([len(inner)]) + inner)
    with pytest.raises(ValueError, match=r"x has 0 values, which does not fit shape \(\)"):
        Feature(key="x", kind="text", shape=(), dtype="string").read(example)


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        example = parse(data)
        for name in example.lists:
            for read in (example.bytes, example.floats, example.ints):
                with contextlib.suppress(ValueError):
                    read(name)
