"""Columns of LeRobot's Parquet files as arrays, pictures and texts over the steps of an episode."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import cast

import numpy as np
import pyarrow as pa

from preprocessing.lerobot.video import VideoFrames
from preprocessing.tfds.features import Column, Feature, naming


def column_values(feature: Feature, column: pa.ChunkedArray) -> Column:
    """A Parquet column over N steps: bytes of pictures and texts, else an array (N, *shape) of the declared dtype.

    Raises ValueError for nulls, or for another number of values than the shape has.
    """
    array = _plain(column.combine_chunks())
    if feature.kind == "image":
        return _pictures(array)
    if array.null_count:
        raise ValueError(f"{array.null_count} of {len(array)} steps have no value")
    if feature.is_bytes:
        return [text.encode() for text in array.to_pylist()]
    count = len(array)
    shape = feature.fixed_shape()
    flat = _flat(array)
    if flat.null_count:
        raise ValueError(f"{flat.null_count} of {len(flat)} values are missing")
    values = flat.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "biuf" or values.size != count * math.prod(shape):
        raise ValueError(f"{values.size} values in {count} steps do not fit shape {shape}")
    return np.ascontiguousarray(values.reshape(count, *shape).astype(feature.dtype, copy=False))


def one_number_a_step(name: str, column: pa.ChunkedArray, dtype: str) -> np.ndarray:
    """A column (N,) of `dtype`, which some converters write as lists of one value. Raises ValueError naming it."""
    with naming(name):
        values = column_values(Feature(key=name, kind="tensor", shape=(), dtype=dtype, outer=(None,)), column)
    return cast(np.ndarray, values)


def _plain(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Without the extension types that Hugging Face's `datasets` registers for arrays of two and more dimensions."""
    whole = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    return whole.storage if isinstance(whole, pa.ExtensionArray) else whole


def _pictures(array: pa.Array) -> list[bytes]:
    """Encoded pictures from {bytes, path}, or from bytes alone."""
    if pa.types.is_struct(array.type):
        array = array.field("bytes")
    pictures: list[bytes | None] = array.to_pylist()
    absent = [step for step, picture in enumerate(pictures) if not picture]
    if absent:
        raise ValueError(f"the picture of step {absent[0]} is not in the file, at most its path")
    return [picture for picture in pictures if picture]


def fingerprint(steps: Mapping[str, Column]) -> int:
    """CRC32 of the names and values of an episode's columns; of a video, of the times of its frames."""
    crc = 0
    for path, column in steps.items():
        crc = zlib.crc32(path.encode(), crc)
        if isinstance(column, np.ndarray):
            crc = zlib.crc32(column.tobytes(), crc)
        elif isinstance(column, VideoFrames):
            crc = zlib.crc32(column.times_s.tobytes(), crc)
        else:
            crc = zlib.crc32(b"\0".join(cast(list[bytes], column)), crc)
    return crc


def _flat(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The values below all levels of lists."""
    inner = _plain(array)
    while isinstance(inner, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        inner = _plain(inner.flatten())
    return inner
