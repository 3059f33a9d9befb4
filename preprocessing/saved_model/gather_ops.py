"""TensorFlow ops that pick, scatter and add up by index, dense, sparse and ragged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from preprocessing.saved_model.number_ops import extreme, truncated_division
from preprocessing.saved_model.op import Attributes, Op, integer, of_arrays


def _gather(attributes: Attributes, x: np.ndarray, indices: np.ndarray, axis: np.ndarray | None = None) -> np.ndarray:
    batch_dims = attributes.get("batch_dims", 0)
    batch_dims += indices.ndim if batch_dims < 0 else 0
    place = 0 if axis is None else integer(axis) % x.ndim
    if not batch_dims:
        return np.take(x, indices, axis=place)
    outer = indices.shape[:batch_dims]
    parts = [np.take(x[index], indices[index], axis=place - batch_dims) for index in np.ndindex(*outer)]
    return np.stack(parts).reshape(*outer, *parts[0].shape)


def _columns(indices: np.ndarray) -> tuple[np.ndarray, ...]:
    """Indices (..., D) as NumPy takes them."""
    return tuple(np.moveaxis(indices, -1, 0))


def _scatter(attributes: Attributes, indices: np.ndarray, updates: np.ndarray, shape: np.ndarray) -> np.ndarray:
    scattered = np.zeros([int(size) for size in shape], updates.dtype)
    np.add.at(scattered, _columns(indices), updates)
    return scattered


def _scattered_into(attributes: Attributes, x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
    changed = x.copy()
    changed[_columns(indices)] = updates
    return changed


def _added_into(attributes: Attributes, x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
    changed = x.copy()
    np.add.at(changed, _columns(indices), updates)
    return changed


# --- Segments ---


def _segments(data: np.ndarray, ids: np.ndarray, count: int, ufunc: np.ufunc, initial: float) -> np.ndarray:
    """(count, ...): the rows of `data` with one id joined by `ufunc`, `initial` where there are none."""
    rows = data.reshape(-1, *data.shape[ids.ndim :])
    flat = ids.reshape(-1)
    joined = np.full((count, *rows.shape[1:]), initial, data.dtype)
    ufunc.at(joined, flat[flat >= 0], rows[flat >= 0])
    return joined


def _count(ids: np.ndarray) -> int:
    return int(ids[-1]) + 1 if ids.size else 0


def _rows_of(ids: np.ndarray, count: int, like: np.ndarray) -> np.ndarray:
    """Rows in each segment, at least 1, to divide `like` by."""
    counts = np.maximum(np.bincount(ids, minlength=count), 1).astype(like.dtype)
    return counts.reshape(-1, *(1,) * (like.ndim - 1))


def _segment_extreme(ufunc: np.ufunc, *, highest: bool) -> Op:
    def join(attributes: Attributes, data: np.ndarray, ids: np.ndarray) -> np.ndarray:
        joined = _segments(data, ids, _count(ids), ufunc, extreme(data.dtype, highest=highest))
        joined[np.bincount(ids, minlength=len(joined)) == 0] = 0
        return joined

    return join


def _unsorted(ufunc: np.ufunc, initial: float | str) -> Op:
    def join(attributes: Attributes, data: np.ndarray, ids: np.ndarray, count: np.ndarray) -> np.ndarray:
        if not isinstance(initial, str):
            return _segments(data, ids, integer(count), ufunc, initial)
        limits = np.finfo(data.dtype) if data.dtype.kind == "f" else np.iinfo(data.dtype)  # not infinite, unlike Max
        return _segments(data, ids, integer(count), ufunc, limits.max if initial == "highest" else limits.min)

    return join


def _segment_sum(attributes: Attributes, data: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return _segments(data, ids, _count(ids), np.add, 0)


def _segment_mean(attributes: Attributes, data: np.ndarray, ids: np.ndarray) -> np.ndarray:
    sums = _segments(data, ids, _count(ids), np.add, 0)
    return truncated_division(sums, _rows_of(ids, len(sums), sums))


def _segment_product(attributes: Attributes, data: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return _segments(data, ids, _count(ids), np.multiply, 1)


def _sparse_segment(divisor: str) -> Op:
    """The sum of the rows that are looked up, over their number or its root."""

    def join(
        attributes: Attributes, data: np.ndarray, indices: np.ndarray, ids: np.ndarray, count: np.ndarray | None = None
    ) -> np.ndarray:
        sums = _segments(data[indices], ids, _count(ids) if count is None else integer(count), np.add, 0)
        rows = _rows_of(ids, len(sums), sums)
        return {"one": sums, "rows": sums / rows, "root": sums / np.sqrt(rows)}[divisor]

    return join


# --- Sharded tables ---


def _partition(attributes: Attributes, data: np.ndarray, parts: np.ndarray) -> list[np.ndarray]:
    return [data[parts == number] for number in range(attributes["num_partitions"])]


def _stitch(attributes: Attributes, *arrays: np.ndarray) -> np.ndarray:
    """Indices of every part, then their rows: all rows in the order of the indices."""
    half = len(arrays) // 2
    indices = np.concatenate([part.reshape(-1) for part in arrays[:half]])
    rows = np.concatenate(
        [rows.reshape(-1, *rows.shape[part.ndim :]) for part, rows in zip(arrays[:half], arrays[half:], strict=True)]
    )
    stitched = np.zeros((int(indices.max(initial=-1)) + 1, *rows.shape[1:]), rows.dtype)
    stitched[indices] = rows
    return stitched


# --- Sparse ---


def _to_dense(
    attributes: Attributes, indices: np.ndarray, shape: np.ndarray, values: np.ndarray, default: np.ndarray
) -> np.ndarray:
    dense = np.full([int(size) for size in shape.reshape(-1)], default, values.dtype)
    dense[_columns(indices if indices.ndim == 2 else indices.reshape(-1, 1))] = values
    return dense


def _reorder(
    attributes: Attributes, indices: np.ndarray, values: np.ndarray, shape: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort(indices.T[::-1])
    return indices[order], values[order]


def _sparse_reshape(
    attributes: Attributes, indices: np.ndarray, shape: np.ndarray, new_shape: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    old = tuple(int(size) for size in shape)
    wanted = [int(size) for size in new_shape]
    if -1 in wanted:
        rest = int(np.prod([size for size in wanted if size != -1]))
        wanted[wanted.index(-1)] = int(np.prod(old)) // rest if rest else 0
    if not len(indices):
        return np.zeros((0, len(wanted)), np.int64), np.array(wanted, np.int64)
    flat = np.ravel_multi_index(tuple(indices.T), old)
    return np.stack(np.unravel_index(flat, tuple(wanted)), axis=1).astype(np.int64), np.array(wanted, np.int64)


def _fill_empty_rows(
    attributes: Attributes, indices: np.ndarray, values: np.ndarray, shape: np.ndarray, default: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The default in column 0 of every row without a value, which rows these are, and where each old value went."""
    empty = np.bincount(indices[:, 0], minlength=int(shape[0])) == 0
    added = np.zeros((int(empty.sum()), indices.shape[1]), np.int64)
    added[:, 0] = np.flatnonzero(empty)
    everything = np.concatenate([indices, added])
    order = np.argsort(everything[:, 0], kind="stable")
    filled = np.concatenate([values, np.full(len(added), default, values.dtype)])
    return everything[order], filled[order], empty, np.argsort(order)[: len(indices)].astype(np.int64)


# --- Ragged ---


def _splits_of(partition: np.ndarray, kind: str, count: int) -> np.ndarray:
    """Where each of `count` rows begins and ends, from row splits or from the row of each value."""
    if kind == "ROW_SPLITS":
        return partition.astype(np.int64)
    return np.concatenate([[0], np.cumsum(np.bincount(partition, minlength=count))]).astype(np.int64)


def _ragged_to_dense(
    attributes: Attributes, shape: np.ndarray, values: np.ndarray, default: np.ndarray, *partitions: np.ndarray
) -> np.ndarray:
    """Rows of several lengths, in several depths, padded with the default or cut to the shape."""
    kinds = list(attributes["row_partition_types"])
    tensors = list(partitions)
    count = -1
    if kinds[0] == "FIRST_DIM_SIZE":
        count = integer(tensors.pop(0))
        kinds.pop(0)
    splits = []
    for kind, tensor in zip(kinds, tensors, strict=True):
        splits.append(_splits_of(tensor, kind, count))
        count = int(splits[-1][-1])
    places = _places(splits)
    sizes = [len(splits[0]) - 1, *(int(np.diff(split).max(initial=0)) for split in splits)]
    asked = [int(size) for size in shape] if shape.ndim else [-1] * len(sizes)  # a scalar: nothing is asked for
    sizes = [size if wanted == -1 else wanted for size, wanted in zip(sizes, asked[: len(sizes)], strict=True)]
    dense = np.full([*sizes, *values.shape[1:]], default, values.dtype)
    inside = (places < np.array(sizes)).all(axis=1)
    dense[_columns(places[inside])] = values[inside]
    return dense


def _places(splits: Sequence[np.ndarray]) -> np.ndarray:
    """(N, depth + 1): the index of each value of a ragged tensor, from the row splits of each depth."""
    places = np.arange(len(splits[0]) - 1)[:, None]
    for split in splits:
        lengths = np.diff(split)
        within = np.arange(int(split[-1])) - np.repeat(split[:-1], lengths)
        places = np.concatenate([np.repeat(places, lengths, axis=0), within[:, None]], axis=1)
    return places


def _ragged_to_sparse(attributes: Attributes, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    *splits, values = arrays
    sizes = [len(splits[0]) - 1, *(int(np.diff(split).max(initial=0)) for split in splits)]
    return _places(splits).astype(np.int64), values, np.array(sizes, np.int64)


def _ragged_range(
    attributes: Attributes, starts: np.ndarray, limits: np.ndarray, steps: np.ndarray
) -> list[np.ndarray]:
    triples = np.broadcast_arrays(np.atleast_1d(starts), np.atleast_1d(limits), np.atleast_1d(steps))
    rows = [np.arange(*(value.item() for value in row), dtype=starts.dtype) for row in zip(*triples, strict=True)]
    ends = np.cumsum([0, *(len(row) for row in rows)], dtype=np.dtype(attributes.get("Tsplits", "int64")))
    return [ends, np.concatenate(rows) if rows else np.zeros(0, starts.dtype)]


def _bin_counts(attributes: Attributes, values: np.ndarray, size: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _dense_bin_counts(attributes, values.reshape(-1), size, weights)


def _dense_bin_counts(attributes: Attributes, values: np.ndarray, size: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How often each number is there, or the sum of its weights, or just whether it is there; of each row by itself."""
    rows, count = np.atleast_2d(values), integer(size)
    kept = (rows >= 0) & (rows < count)
    places = (np.nonzero(kept)[0], rows[kept])
    bins = np.zeros((len(rows), count), weights.dtype)
    if attributes.get("binary_output"):
        bins[places] = 1
    else:
        np.add.at(bins, places, weights.reshape(rows.shape)[kept] if weights.size else np.ones((), weights.dtype))
    return bins if values.ndim == 2 else bins[0]


GATHER_OPS: dict[str, Op] = {
    **dict.fromkeys(("Gather", "GatherV2"), _gather),
    "GatherNd": of_arrays(lambda x, indices: x[_columns(indices)]),
    "ScatterNd": _scatter,
    "TensorScatterUpdate": _scattered_into,
    "TensorScatterAdd": _added_into,
    "SegmentSum": _segment_sum,
    "SegmentMean": _segment_mean,
    "SegmentProd": _segment_product,
    "SegmentMax": _segment_extreme(np.maximum, highest=False),
    "SegmentMin": _segment_extreme(np.minimum, highest=True),
    "UnsortedSegmentSum": _unsorted(np.add, 0),
    "UnsortedSegmentProd": _unsorted(np.multiply, 1),
    "UnsortedSegmentMax": _unsorted(np.maximum, "lowest"),
    "UnsortedSegmentMin": _unsorted(np.minimum, "highest"),
    **{f"SparseSegmentSum{end}": _sparse_segment("one") for end in ("", "WithNumSegments")},
    **{f"SparseSegmentMean{end}": _sparse_segment("rows") for end in ("", "WithNumSegments")},
    **{f"SparseSegmentSqrtN{end}": _sparse_segment("root") for end in ("", "WithNumSegments")},
    "DynamicPartition": _partition,
    **dict.fromkeys(("DynamicStitch", "ParallelDynamicStitch"), _stitch),
    "SparseToDense": _to_dense,
    "SparseReorder": _reorder,
    "SparseReshape": _sparse_reshape,
    "SparseFillEmptyRows": _fill_empty_rows,
    "RaggedTensorToTensor": _ragged_to_dense,
    "RaggedTensorToSparse": _ragged_to_sparse,
    "RaggedRange": _ragged_range,
    "Bincount": _bin_counts,
    "DenseBincount": _dense_bin_counts,
}
