"""Values of every kind of feature equal those that tensorflow_datasets was given to write."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.core import features as tfds_features
from tensorflow_datasets.proto import tf_example_pb2

from preprocessing.rlds import open_dataset
from preprocessing.tfds.features import Feature, flatten
from preprocessing.tfds.tf_example import parse

DTYPES = ("bool", "uint8", "int8", "int32", "int64", "uint16", "uint64", "float32", "float64", "float16")


def written(features: Any, value: Any) -> tuple[dict[str, Feature], Any]:
    payload = example_serializer.ExampleSerializer(features.get_serialized_info()).serialize_example(
        features.encode_example(value)
    )
    return flatten(json.loads(json_format.MessageToJson(features.to_proto()))), parse(payload)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, list[np.ndarray]]:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3))
    values = hnp.arrays(dtype, shape, elements=_elements(dtype))
    return dtype, draw(st.lists(values, min_size=1, max_size=4))


def _elements(dtype: str) -> st.SearchStrategy | None:
    return st.floats(-1000, 1000, width=16) if dtype.startswith("float") else None


@settings(max_examples=60, deadline=None)
@given(tensors())
def test_tensors_of_steps(drawn: tuple[str, list[np.ndarray]]) -> None:
    dtype, values = drawn
    tensor = tfds_features.Tensor(shape=values[0].shape, dtype=np.dtype(dtype))
    features = tfds_features.FeaturesDict({"steps": tfds_features.Dataset({"x": tensor}), "once": tensor})
    leaves, example = written(features, {"steps": [{"x": value} for value in values], "once": values[0]})
    found = leaves["steps/x"].read(example)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.stack(values))
    np.testing.assert_array_equal(leaves["once"].read(example), values[0])


@pytest.mark.parametrize(("dtype", "value"), [("uint8", 300), ("int8", -129), ("uint32", -1)])
def test_whole_numbers_that_the_declared_dtype_does_not_hold_are_refused(dtype: str, value: int) -> None:
    message = tf_example_pb2.Example()
    message.features.feature["steps/x"].int64_list.value.extend([7, value])
    feature = Feature(key="steps/x", kind="tensor", shape=(), dtype=dtype, outer=(None,))
    with pytest.raises(ValueError, match=f"steps/x holds {value}, which is no {dtype}"):
        feature.read(parse(message.SerializeToString()))


def test_large_uint64_come_back_though_they_are_stored_as_int64() -> None:
    value = np.array([7, 2**64 - 1], np.uint64)
    leaves, example = written(
        tfds_features.FeaturesDict({"x": tfds_features.Tensor(shape=(2,), dtype=np.uint64)}), {"x": value}
    )
    np.testing.assert_array_equal(leaves["x"].read(example), value)


@pytest.mark.parametrize("encoding", ["zlib", "bytes"])
@pytest.mark.parametrize("shape", [(2, 3), (None, 3), (None, None)])
def test_encoded_tensors_of_the_episode(encoding: str, shape: tuple[int | None, ...]) -> None:
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = tfds_features.Tensor(shape=shape, dtype=np.float32, encoding=encoding)
    leaves, example = written(tfds_features.FeaturesDict({"x": tensor}), {"x": value})
    np.testing.assert_array_equal(leaves["x"].read(example), value)


def test_encoded_tensors_of_steps_as_kuka_has_them() -> None:
    # tensorflow_datasets cannot write these; the released files hold one compressed string a step.
    values = np.arange(14, dtype=np.float32).reshape(2, 7)
    message = tf_example_pb2.Example()
    message.features.feature["steps/pose"].bytes_list.value.extend(zlib.compress(row.tobytes()) for row in values)
    feature = Feature(key="steps/pose", kind="tensor", shape=(7,), dtype="float32", encoding="zlib", outer=(None,))
    np.testing.assert_array_equal(feature.read(parse(message.SerializeToString())), values)
    message.features.feature["steps/pose"].bytes_list.value[1] = b"not zlib"
    with pytest.raises(ValueError, match="steps/pose: Error -3"):
        feature.read(parse(message.SerializeToString()))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_ragged_sequences_of_steps(lengths: list[int]) -> None:
    # Written by hand in the layout of TFDS, which imports TensorFlow to serialize nested sequences.
    rows = [np.arange(2 * n, dtype=np.float32).reshape(n, 2) for n in lengths]
    message = tf_example_pb2.Example()
    message.features.feature["steps/points/ragged_flat_values"].float_list.value.extend(np.concatenate(rows).ravel())
    message.features.feature["steps/points/ragged_row_lengths_0"].int64_list.value.extend(lengths)
    feature = Feature(key="steps/points", kind="tensor", shape=(2,), dtype="float32", outer=(None, None))
    for found, row in zip(feature.read(parse(message.SerializeToString())), rows, strict=True):
        np.testing.assert_array_equal(found, row)


def test_ragged_texts_as_tidybot_has_them() -> None:
    message = tf_example_pb2.Example()
    message.features.feature["steps/names/ragged_flat_values"].bytes_list.value.extend([b"a", b"bb", b"c"])
    message.features.feature["steps/names/ragged_row_lengths_0"].int64_list.value.extend([2, 0, 1])
    feature = Feature(key="steps/names", kind="tensor", shape=(), dtype="string", outer=(None, None))
    assert feature.read(parse(message.SerializeToString())) == [[b"a", b"bb"], [], [b"c"]]


def test_row_lengths_that_lie_are_refused() -> None:
    message = tf_example_pb2.Example()
    message.features.feature["steps/ids/ragged_flat_values"].int64_list.value.extend([5, 6, 7])
    message.features.feature["steps/ids/ragged_row_lengths_0"].int64_list.value.extend([0, 9])
    feature = Feature(key="steps/ids", kind="tensor", shape=(), dtype="int32", outer=(None, None))
    with pytest.raises(ValueError, match="row lengths add up to"):
        feature.read(parse(message.SerializeToString()))


def test_videos_are_frames() -> None:
    shape = {"dimensions": ["-1", "64", "64", "3"]}
    video = {"video": {"shape": shape, "dtype": "uint8", "encodingFormat": "png"}}
    (leaf,) = flatten({"featuresDict": {"features": {"video": video}}}).values()
    message = tf_example_pb2.Example()
    message.features.feature["video"].bytes_list.value.extend([b"frame 0", b"frame 1"])
    assert leaf.read(parse(message.SerializeToString())) == [b"frame 0", b"frame 1"]


def test_texts_labels_and_nesting() -> None:
    label = tfds_features.ClassLabel(names=["a", "b"])
    inner = {"deep": {"text": tfds_features.Text(), "label": label}}
    features = tfds_features.FeaturesDict({"steps": tfds_features.Dataset(inner), "id": tfds_features.Text()})
    steps = [
        {"deep": {"text": "x", "label": "b"}},
        {"deep": {"text": "é", "label": 0}},
    ]
    leaves, example = written(features, {"steps": steps, "id": "e1"})
    assert leaves["id"].read(example) == b"e1"
    assert leaves["steps/deep/text"].read(example) == [b"x", "é".encode()]
    assert leaves["steps/deep/label"].read(example).tolist() == [1, 0]


def test_every_open_x_schema_is_understood(data_dir: Path) -> None:
    folders = sorted((data_dir / "openx_metadata").glob("*/*/features.json"))
    assert len(folders) >= 25
    for folder in folders:
        assert {"is_first", "is_last", "is_terminal"} <= set(open_dataset(str(folder.parent)).step_paths)


def test_a_count_that_does_not_fit_the_shape_is_refused() -> None:
    message = tf_example_pb2.Example()
    message.features.feature["steps/action"].float_list.value.extend([1.0] * 8)
    feature = Feature(key="steps/action", kind="tensor", shape=(7,), dtype="float32", outer=(None,))
    with pytest.raises(ValueError, match="steps/action has 8 values"):
        feature.read(parse(message.SerializeToString()))


def test_less_common_features() -> None:
    features = tfds_features.FeaturesDict(
        {
            "box": tfds_features.BBoxFeature(),
            "said": tfds_features.Translation(["en", "de"]),
            "left_out": tfds_features.Tensor(shape=(2,), dtype=np.int32, optional=True),
            "given": tfds_features.Scalar(dtype=np.float32, optional=True),
        }
    )
    value = {
        "box": tfds_features.BBox(0.0, 0.25, 0.5, 1.0),
        "said": {"en": "lift", "de": "heben"},
        "left_out": None,
        "given": 1.5,
    }
    leaves, example = written(features, value)
    found = {key: leaf.read(example) for key, leaf in leaves.items()}
    lowest = np.iinfo(np.int32).min  # what TFDS reads where an optional value is missing
    expected = {
        "box": np.float32([0, 0.25, 0.5, 1]),
        "said/en": b"lift",
        "said/de": b"heben",
        "left_out": np.array([lowest, lowest], np.int32),
        "given": np.float32(1.5),
    }
    np.testing.assert_equal(found, expected)


def test_images_of_old_metadata_have_eight_bits() -> None:
    image = {"image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "encodingFormat": "jpeg"}}
    (leaf,) = flatten({"featuresDict": {"features": {"image": image}}}).values()
    assert leaf.dtype == "uint8" and leaf.kind == "image"


def test_sounds_are_numbers() -> None:
    # TFDS declares the encoding of sounds, but cannot write arrays with it.
    sound = {"audio": {"shape": {"dimensions": ["-1"]}, "dtype": "int64", "encoding": "ZLIB"}}
    (leaf,) = flatten({"featuresDict": {"features": {"sound": sound}}}).values()
    message = tf_example_pb2.Example()
    message.features.feature["sound"].bytes_list.value.append(zlib.compress(np.arange(5).tobytes()))
    np.testing.assert_array_equal(leaf.read(parse(message.SerializeToString())), np.arange(5))


@pytest.mark.parametrize("change", ["cut", "bomb"])
def test_compressed_tensors_that_lie_about_their_size(change: str) -> None:
    data = zlib.compress(bytes(28))[:-3] if change == "cut" else zlib.compress(bytes(1 << 24))
    message = tf_example_pb2.Example()
    message.features.feature["steps/pose"].bytes_list.value.append(data)
    feature = Feature(key="steps/pose", kind="tensor", shape=(7,), dtype="float32", encoding="zlib", outer=(None,))
    with pytest.raises(ValueError, match="steps/pose: a compressed tensor is cut short, or larger than its shape"):
        feature.read(parse(message.SerializeToString()))


def test_row_lengths_below_zero_are_refused() -> None:
    message = tf_example_pb2.Example()
    message.features.feature["steps/ids/ragged_flat_values"].int64_list.value.extend([5, 6, 7])
    message.features.feature["steps/ids/ragged_row_lengths_0"].int64_list.value.extend([4, -1])
    feature = Feature(key="steps/ids", kind="tensor", shape=(), dtype="int32", outer=(None, None))
    with pytest.raises(ValueError, match="row lengths add up to"):
        feature.read(parse(message.SerializeToString()))


def test_episodes_without_rows_of_fixed_length() -> None:
    message = tf_example_pb2.Example()
    for name in ("ragged_flat_values", "ragged_row_lengths_0"):
        message.features.feature[f"steps/ids/{name}"].int64_list.SetInParent()
    feature = Feature(key="steps/ids", kind="tensor", shape=(), dtype="int32", outer=(None, 2))
    assert feature.read(parse(message.SerializeToString())) == []
