"""What the implementation of a TensorFlow op is here: a function of the node's attributes and its input arrays.

Numbers are NumPy arrays of TensorFlow's own type. Strings, which TensorFlow keeps as bytes, are object arrays of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Attributes = Mapping[str, Any]
Op = Callable[..., "np.ndarray | Sequence[np.ndarray]"]


def of_arrays(function: Callable[..., Any]) -> Op:
    """An op without attributes."""
    return lambda attributes, *arrays: np.asarray(function(*arrays))


def integer(array: np.ndarray) -> int:
    """The value of an array of one integer."""
    return int(array.reshape(()))


def texts(values: Sequence[bytes], shape: Sequence[int] | None = None) -> np.ndarray:
    """An object array of bytes."""
    array = np.empty(len(values), object)
    array[:] = values
    return array if shape is None else array.reshape(tuple(shape))
