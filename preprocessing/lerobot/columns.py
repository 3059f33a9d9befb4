"""Columns of LeRobot's Parquet files as arrays, pictures and texts over the steps of an episode."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pyarrow as pa

from preprocessing.tfds.features import Column, Feature


def column_values(feature: Feature, column: pa.ChunkedArray) -> Column:
    """A Parquet column over N steps: bytes of pictures and texts, else an array (N, *shape) of the declared dtype.

    Raises ValueError for nulls, or for another number of values than the shape has.
    """
    array = _plain(column.combine_chunks())
    if feature.kind == "image":
        return _pictures(array)
    if array.null_count:
        raise ValueError(f"{array.null_count} of {len(array)} values are missing")
    if feature.is_bytes:
        return [text.encode() for text in array.to_pylist()]
    count = len(array)
    shape = feature.fixed_shape()
    values = _flat(array).to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "biuf" or values.size != count * math.prod(shape):
        raise ValueError(f"{values.size} values in {count} steps do not fit shape {shape}")
    return np.ascontiguousarray(values.reshape(count, *shape).astype(feature.dtype, copy=False))


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


def fingerprint(table: pa.Table) -> int:
    """CRC32 of the types and values of `table`, however the file divides them into chunks."""
    crc = 0
    for column in table.columns:
        crc = zlib.crc32(str(column.type).encode(), crc)
        array = _flat(column.combine_chunks())
        if pa.types.is_struct(array.type):
            array = array.field("bytes")
        if pa.types.is_primitive(array.type):
            crc = zlib.crc32(array.to_numpy(zero_copy_only=False).tobytes(), crc)
            continue
        for value in array.to_pylist():
            crc = zlib.crc32(value if isinstance(value, bytes) else str(value).encode(), crc)
    return crc


def _flat(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The values below all levels of lists."""
    inner = _plain(array)
    while isinstance(inner, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        inner = _plain(inner.flatten())
    return inner
