"""The bytes of openpi's websocket protocol: one map a message, arrays as maps with byte keys.

openpi-client 0.1.2 `msgpack_numpy.py`: {b"__ndarray__": True, b"data", b"dtype", b"shape"} and, for NumPy scalars,
{b"__npgeneric__": True, b"data", b"dtype"}. PyPI's msgpack-numpy writes another form.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipelines.serving.codecs import messagepack
from pipelines.serving.codecs.arrays import array_of


def unpack(message: bytes) -> dict[str, object]:
    """The fields of a message. Raises Refusal, naming the field."""
    return messagepack.unpack(message, _leaf)


def pack(fields: Mapping[str, object]) -> bytes:
    return messagepack.pack(fields, _array)


def _leaf(pairs: Mapping[object, object]) -> object:
    if b"__ndarray__" in pairs:
        return array_of(pairs.get(b"dtype"), pairs.get(b"shape"), pairs.get(b"data"))
    if b"__npgeneric__" in pairs:
        return _scalar(pairs.get(b"data"))
    return pairs


def _scalar(value: object) -> object:
    if not isinstance(value, bool | int | float | str):
        raise ValueError(f"a NumPy scalar must be a number, got {type(value).__name__}")
    return value


def _array(array: np.ndarray) -> Mapping[object, object]:
    return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}
