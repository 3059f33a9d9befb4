"""TensorFlow ops that arrange: shapes, slices, concatenation, choice by condition, constants of a shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from preprocessing.saved_model.op import Attributes, Op, integer, of_arrays


def _sizes(array: np.ndarray) -> tuple[int, ...]:
    return tuple(int(size) for size in array.reshape(-1))


def _out_type(attributes: Attributes) -> np.dtype:
    return np.dtype(attributes.get("out_type", "int32"))


def _shape(attributes: Attributes, x: np.ndarray) -> np.ndarray:
    return np.array(x.shape, _out_type(attributes))


def _shapes(attributes: Attributes, *arrays: np.ndarray) -> list[np.ndarray]:
    return [_shape(attributes, x) for x in arrays]


def _reshape(attributes: Attributes, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    sizes = list(_sizes(shape))
    if -1 in sizes and not x.size:
        rest = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = 0 if rest else 1
    return x.reshape(sizes)


def _squeeze(attributes: Attributes, x: np.ndarray) -> np.ndarray:
    dims = attributes.get("squeeze_dims") or ()
    return x.squeeze(axis=tuple(dims) if dims else None)


def _pack(attributes: Attributes, *arrays: np.ndarray) -> np.ndarray:
    return np.stack(arrays, axis=attributes.get("axis", 0))


def _unpack(attributes: Attributes, x: np.ndarray) -> list[np.ndarray]:
    return list(np.moveaxis(x, attributes.get("axis", 0), 0))


def _concat(attributes: Attributes, *arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays[:-1], axis=integer(arrays[-1]))


def _split(attributes: Attributes, axis: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    return np.split(x, attributes["num_split"], axis=integer(axis))


def _split_by_sizes(attributes: Attributes, x: np.ndarray, sizes: np.ndarray, axis: np.ndarray) -> list[np.ndarray]:
    widths = list(_sizes(sizes))
    if -1 in widths:
        widths[widths.index(-1)] = x.shape[integer(axis)] - sum(widths) - 1
    return np.split(x, np.cumsum(widths)[:-1], axis=integer(axis))


def _slice(attributes: Attributes, x: np.ndarray, begin: np.ndarray, size: np.ndarray) -> np.ndarray:
    pairs = zip(_sizes(begin), _sizes(size), strict=True)
    return x[tuple(slice(first, None if count == -1 else first + count) for first, count in pairs)]


def _strided_slice(
    attributes: Attributes, x: np.ndarray, begin: np.ndarray, end: np.ndarray, strides: np.ndarray
) -> np.ndarray:
    def marked(mask: str, place: int) -> bool:
        return bool(attributes.get(f"{mask}_mask", 0) >> place & 1)

    index: list[object] = []
    for place, (first, last, step) in enumerate(zip(_sizes(begin), _sizes(end), _sizes(strides), strict=True)):
        if marked("ellipsis", place):
            index.append(Ellipsis)
        elif marked("new_axis", place):
            index.append(None)
        elif marked("shrink_axis", place):
            index.append(first)
        else:
            left = None if marked("begin", place) else first
            right = None if marked("end", place) else last
            index.append(slice(left, right, step))
    return np.asarray(x[tuple(index)])  # type: ignore[index]


def _fill(attributes: Attributes, shape: np.ndarray, value: np.ndarray) -> np.ndarray:
    return np.full(_sizes(shape), value, value.dtype)


def _range(attributes: Attributes, start: np.ndarray, limit: np.ndarray, step: np.ndarray) -> np.ndarray:
    return np.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def _pad(attributes: Attributes, x: np.ndarray, widths: np.ndarray, value: np.ndarray | None = None) -> np.ndarray:
    padded = np.full(
        [size + int(left) + int(right) for size, (left, right) in zip(x.shape, widths, strict=True)],
        np.zeros((), x.dtype) if value is None else value,
        x.dtype,
    )
    padded[tuple(slice(int(left), int(left) + size) for size, (left, _) in zip(x.shape, widths, strict=True))] = x
    return padded


def _one_hot(
    attributes: Attributes, indices: np.ndarray, depth: np.ndarray, on: np.ndarray, off: np.ndarray
) -> np.ndarray:
    hot = np.where(indices[..., None] == np.arange(integer(depth)), on, off)
    axis = attributes.get("axis", -1)
    return hot if axis == -1 else np.moveaxis(hot, -1, axis)


def _band(attributes: Attributes, x: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    below = np.arange(x.shape[-2])[:, None] - np.arange(x.shape[-1])[None, :]
    low, high = integer(lower), integer(upper)
    kept = ((below <= low) | (low < 0)) & ((-below <= high) | (high < 0))
    return np.where(kept, x, np.zeros((), x.dtype))


def _select(attributes: Attributes, condition: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The older choice, where a vector of conditions chooses rows."""
    if condition.ndim == 1 and x.ndim > 1:
        condition = condition.reshape(-1, *(1,) * (x.ndim - 1))
    return np.where(condition, x, y)


def _top(attributes: Attributes, x: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-x, axis=-1, kind="stable")[..., : integer(count)]
    return np.take_along_axis(x, order, axis=-1), order.astype(np.int32)


def _unique(attributes: Attributes, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values in the order of their first places, and which of them each value is."""
    place_of_value: dict[object, int] = {}
    places = [place_of_value.setdefault(value, len(place_of_value)) for value in x.tolist()]
    _, firsts = np.unique(np.array(places, np.int64), return_index=True)
    return x[firsts], np.array(places, np.dtype(attributes.get("out_idx", "int32")))


def _difference(attributes: Attributes, x: np.ndarray, without: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    left_out = set(without.tolist())
    kept = np.array([place for place, value in enumerate(x.tolist()) if value not in left_out], np.int64)
    return x[kept], kept.astype(np.dtype(attributes.get("out_idx", "int32")))


def _broadcast_shapes(attributes: Attributes, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.array(np.broadcast_shapes(_sizes(one), _sizes(other)), one.dtype)


def _identities(attributes: Attributes, *arrays: np.ndarray) -> Sequence[np.ndarray]:
    return arrays


SHAPE_OPS: dict[str, Op] = {
    "IdentityN": _identities,
    "Shape": _shape,
    "ShapeN": _shapes,
    "Size": lambda attributes, x: np.array(x.size, _out_type(attributes)),
    "Rank": of_arrays(lambda x: np.int32(x.ndim)),
    "Reshape": _reshape,
    "ExpandDims": of_arrays(lambda x, axis: np.expand_dims(x, integer(axis))),
    "Squeeze": _squeeze,
    "Transpose": of_arrays(lambda x, order: x.transpose(_sizes(order))),
    "Pack": _pack,
    "Unpack": _unpack,
    "ConcatV2": _concat,
    "Split": _split,
    "SplitV": _split_by_sizes,
    "Slice": _slice,
    "StridedSlice": _strided_slice,
    "Tile": of_arrays(lambda x, multiples: np.tile(x, _sizes(multiples))),
    "Fill": _fill,
    "Range": _range,
    "BroadcastTo": of_arrays(lambda x, shape: np.broadcast_to(x, _sizes(shape))),
    "BroadcastArgs": _broadcast_shapes,
    **dict.fromkeys(("Pad", "PadV2"), _pad),
    "ReverseV2": of_arrays(lambda x, axes: np.flip(x, _sizes(axes))),
    "InvertPermutation": of_arrays(lambda order: np.argsort(order).astype(order.dtype)),
    "OneHot": _one_hot,
    "MatrixBandPart": _band,
    "Select": _select,
    "SelectV2": of_arrays(np.where),
    "Where": of_arrays(lambda condition: np.argwhere(condition).astype(np.int64)),
    "TopKV2": _top,
    "Unique": _unique,
    "ListDiff": _difference,
}
