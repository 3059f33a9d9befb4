"""Arrays from the network: plain numbers, of a size that the bytes bear out, and nothing else.

`np.frombuffer` trusts a dtype: with `|O` it takes bytes for pointers, and the process dies. So a dtype is matched
against a short grammar before NumPy sees it.
"""

from __future__ import annotations

import math
import re

import numpy as np

_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_MOST_AXES = 8


def array_of(dtype: object, shape: object, data: object) -> np.ndarray:
    """The array, read-only, over the bytes of `data`. Raises ValueError for what is no array of plain numbers."""
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        raise ValueError(f"dtype {dtype!r:.40} is not read: send booleans, integers or floats, such as '|u1' or '<f4'")
    if not isinstance(shape, list | tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"shape {shape!r:.40} must be a list of whole numbers that are not negative")
    if len(shape) > _MOST_AXES:
        raise ValueError(f"an array of {len(shape)} axes is not read, at most {_MOST_AXES} are")
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ValueError(f"the data of an array must be bytes, got {type(data).__name__}")
    kind = np.dtype(dtype)
    needed = math.prod(shape) * kind.itemsize
    if needed != len(data):
        raise ValueError(f"{dtype} of shape {list(shape)} has {needed} bytes, but {len(data)} were sent")
    array = np.frombuffer(data, kind).reshape(shape)
    return array if kind.isnative else array.astype(kind.newbyteorder("="))
