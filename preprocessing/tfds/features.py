"""features.json of a TFDS dataset, and the values of its features from tf.train.Example records.

Covered: FeaturesDict and Dataset nesting, Sequence, Tensor and Scalar (raw, bytes and zlib encodings, every dtype TFDS
writes), Text, ClassLabel, Image and Video as encoded bytes, one or several unknown dimensions. Images stay encoded.
The layout of the lists in a record follows tensorflow_datasets 4.9 (`core/example_serializer.py`).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np

from preprocessing.store.json_files import JsonObject
from preprocessing.tfds.tf_example import Example

Encoding = Literal["none", "bytes", "zlib"]
Dimensions = tuple[int | None, ...]


class Frames(Protocol):
    """Pictures uint8 (H, W, 3) of an episode, decoded while one iterates: one is in memory at a time."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[np.ndarray]: ...


Column = np.ndarray | list[bytes] | list[np.ndarray] | Frames
"""A feature over the steps of an episode; a list if it holds bytes, or arrays that differ in size."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A leaf of features.json: `shape` of one value (None: unknown), `outer` dimensions that sequences around it add.

    An `optional` value may be left out of a record; what is read then is TFDS's mark for it, the lowest number, False
    or an empty text.

    `kind` "image" and "text" are one byte string per value, whatever `shape` the decoded image has. `refusal` says why
    one of kind "unknown" cannot be read; it is in the way only where someone wants to.
    """

    key: str
    kind: Literal["tensor", "image", "text", "unknown"]
    shape: Dimensions
    dtype: str
    encoding: Encoding = "none"
    outer: Dimensions = ()
    optional: bool = False
    refusal: str = ""
    codec: str = ""
    names: tuple[str, ...] = ()

    @property
    def is_bytes(self) -> bool:
        return self.kind != "tensor" or self.dtype == "string"

    @property
    def is_picture(self) -> bool:
        """True of one picture per step, 8 bits per colour: encoded, or as numbers of shape (height, width, 1 or 3)."""
        as_numbers = len(self.shape) == 3 and None not in self.shape and self.shape[-1] in (1, 3)
        return (self.kind == "image" or as_numbers) and self.dtype == "uint8" and len(self.outer) == 1

    @property
    def is_text(self) -> bool:
        """True of one string per step, or one of the episode."""
        return self.is_bytes and self.kind in ("tensor", "text") and not self.shape and len(self.outer) < 2

    @property
    def is_one_number(self) -> bool:
        """True of one number per step, also if it is wrapped as in shape (1,)."""
        return not self.is_bytes and len(self.outer) == 1 and math.prod(size or 0 for size in self.shape) == 1

    def fixed_shape(self) -> tuple[int, ...]:
        """The shape of one step's value. Raises ValueError if a dimension is unknown."""
        shape = (*self.outer[1:], *self.shape)
        if None in shape or self.is_bytes:
            raise ValueError(f"{self.key} has no fixed numeric shape: it cannot be kept as an action field")
        return tuple(size for size in shape if size is not None)

    def read(self, example: Example) -> Any:
        """The value: an array, a scalar, bytes, or a list of these along an unknown or byte-valued dimension.

        Raises ValueError naming the feature if the record does not have it as declared.
        """
        if self.refusal:
            raise ValueError(self.refusal)
        with naming(self.key):
            return self._value(example)

    def _value(self, example: Example) -> Any:
        if self.optional and not self.outer and self.key not in example:
            return self._left_out()
        stored = () if self.kind != "tensor" or self.encoding != "none" else self.shape
        if self.encoding != "none" and self.shape.count(None) > 1:
            return self._dynamic(example)
        value = _unflatten(example, self.key, (*self.outer, *stored), self._flat)
        if self.encoding == "none":
            return value
        return _each(value, len(self.outer), lambda data: self._decoded(data, self.shape))

    def _left_out(self) -> np.ndarray | np.generic | bytes:
        if self.is_bytes:
            return b""
        dtype = np.dtype(self.dtype)
        lowest = False if dtype.kind == "b" else (np.finfo if dtype.kind == "f" else np.iinfo)(dtype).min
        return np.full([size or 0 for size in self.shape], lowest, dtype)[()]

    def _dynamic(self, example: Example) -> Any:
        """Encoded tensors with several unknown dimensions carry their shape beside them."""
        rank = len(self.shape)
        values = example.bytes(f"{self.key}/value")
        shapes = example.ints(f"{self.key}/shape").reshape(-1, rank)
        if len(values) != len(shapes):
            raise ValueError(f"{self.key} has {len(values)} values and {len(shapes)} shapes")
        decoded = [self._decoded(data, tuple(shape)) for data, shape in zip(values, shapes, strict=True)]
        return decoded if self.outer else decoded[0]

    def _decoded(self, data: bytes, shape: Dimensions) -> np.ndarray:
        """The tensor that TFDS packed into bytes."""
        dtype = np.dtype(self.dtype)
        if self.encoding == "zlib":
            expected = None if None in shape else math.prod(size for size in shape if size is not None)
            data = _decompress(data, self.key, 0 if expected is None else expected * dtype.itemsize + 1)
        values = np.frombuffer(data, dtype)
        return values.reshape([-1 if size is None else size for size in shape])

    def _flat(self, example: Example, key: str) -> np.ndarray | list[bytes]:
        """The list as it lies in the record: an array, or a list of bytes."""
        if self.is_bytes or self.encoding != "none":
            return example.bytes(key)
        dtype = np.dtype(self.dtype)
        values = example.floats(key) if dtype.kind == "f" else example.ints(key)
        if values.dtype == dtype:
            return values
        narrowed = values.astype(dtype)
        is_narrower = dtype.kind in "iu" and dtype.itemsize < values.dtype.itemsize  # uint64 is stored as int64
        if is_narrower and (wrong := np.flatnonzero(narrowed != values)).size:
            raise ValueError(f"{key} holds {values[wrong[0]]}, which is no {dtype}, the dtype that is declared")
        return narrowed


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Around what reads a field: whatever is wrong with its values becomes a ValueError that names it."""
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(reason if path in reason else f"{path}: {reason}") from None


def flatten(tree: JsonObject) -> dict[str, Feature]:
    """Leaves of features.json by their key in the records, e.g. "steps/observation/image".

    A leaf of a kind that is not known here says so when it is read.
    """
    return {feature.key: feature for feature in _leaves(tree, "", ())}


def _leaves(node: JsonObject, key: str, outer: Dimensions) -> Iterator[Feature]:
    if "featuresDict" in node:  # an empty one is written without `features`
        for child, inner in node["featuresDict"].get("features", {}).items():
            yield from _leaves(inner, f"{key}/{child}" if key else child, outer)
    elif "sequence" in node:
        length = int(node["sequence"].get("length", -1))
        yield from _leaves(node["sequence"]["feature"], key, (*outer, None if length < 0 else length))
    else:
        try:
            yield from _leaf(node, key, outer)
        except ValueError as error:  # most datasets have fields that nobody here reads
            if not key:
                raise
            yield Feature(key=key, kind="unknown", shape=(), dtype="object", outer=outer, refusal=str(error))


def _leaf(node: JsonObject, key: str, outer: Dimensions) -> Iterator[Feature]:
    """The feature of a node without children. Raises ValueError if it is of no kind that is known here."""
    name = str(node.get("pythonClassName", "")).rpartition(".")[2]
    if body := node.get("tensor") or node.get("boundingBox") or node.get("audio"):
        kind = "text" if body.get("lazyDecode") else "tensor"
        encoding = _encoding(body, key)
        numbers = {"shape": _shape(body), "dtype": _dtype(body, key), "optional": bool(body.get("optional"))}
        yield Feature(key=key, kind=kind, encoding=encoding, outer=outer, **numbers)
    elif "image" in node:
        body = {"dtype": "uint8", **node["image"]}  # which old versions of TFDS leave out
        yield Feature(key=key, kind="image", shape=_shape(body), dtype=_dtype(body, key), outer=outer)
    elif _shape(node.get("video", {})):
        frames, *shape = _shape(node["video"])
        yield Feature(key=key, kind="image", shape=tuple(shape), dtype="uint8", outer=(*outer, frames))
    elif "text" in node or name == "Text":
        yield Feature(key=key, kind="text", shape=(), dtype="string", outer=outer)
    elif "classLabel" in node or name == "ClassLabel":
        yield Feature(key=key, kind="tensor", shape=(), dtype="int64", outer=outer)
    elif "translation" in node:
        several = bool(node["translation"].get("variableLanguagesPerExample"))
        languages = ("language", "translation") if several else node["translation"].get("languages", ())
        for language in languages:
            more = (*outer, None) if several else outer
            yield Feature(key=f"{key}/{language}", kind="text", shape=(), dtype="string", outer=more)
    else:
        raise ValueError(f"{key or 'the root'} is a {name or 'feature without a class'}, not supported")


def _shape(body: JsonObject) -> Dimensions:
    sizes = [int(size) for size in body.get("shape", {}).get("dimensions", [])]
    return tuple(None if size < 0 else size for size in sizes)


def _encoding(body: JsonObject, key: str) -> Encoding:
    name = str(body.get("encoding") or "none").lower()
    encoding = next((known for known in get_args(Encoding) if known == name), None)
    if encoding is None:
        raise ValueError(f"{key or 'the root'} has encoding {name!r}, none of {', '.join(get_args(Encoding))}")
    return encoding


def _dtype(body: JsonObject, key: str) -> str:
    dtype = str(body.get("dtype", ""))
    if dtype in ("string", "object"):
        return "string"
    try:
        return np.dtype(dtype).name
    except TypeError:
        raise ValueError(f"{key or 'the root'} has dtype {dtype!r}, which NumPy does not know") from None


def _unflatten(
    example: Example, key: str, shape: Dimensions, flat: Callable[[Example, str], np.ndarray | list[bytes]]
) -> Any:
    """Give the flat list of a record its shape; ragged dimensions become lists.

    TFDS writes nested sequences as flat values with the lengths of their rows, level by level, even where all rows of a
    level are declared equally long.
    """
    if key in example:
        return _reshaped(flat(example, key), key, shape)
    levels = [level for level in range(len(shape)) if f"{key}/ragged_row_lengths_{level}" in example]
    if not levels:
        if None in shape:  # an empty sequence may be left out
            return []
        raise ValueError(f"{key} is missing")
    values: Any = _reshaped(flat(example, f"{key}/ragged_flat_values"), key, (None, *shape[len(levels) + 1 :]))
    for level in reversed(levels):
        lengths = example.ints(f"{key}/ragged_row_lengths_{level}")
        ends = np.cumsum(lengths)
        if len(values) != (ends[-1] if len(ends) else 0) or (lengths < 0).any():
            raise ValueError(f"{key} has {len(values)} values, but its row lengths add up to {ends[-1:]}")
        values = [values[stop - length : stop] for length, stop in zip(lengths, ends, strict=True)]
    same = len(values) > 0 and None not in shape[1:] and isinstance(values[0], np.ndarray)
    return np.stack(values) if same else values


def _reshaped(values: np.ndarray | list[bytes], key: str, shape: Dimensions) -> Any:
    """`values` in `shape` with at most one unknown dimension; a list stays a list where it is one-dimensional."""
    known = math.prod(size for size in shape if size is not None)
    count = len(values)
    fits = count == known if None not in shape else shape.count(None) == 1 and known > 0 and count % known == 0
    if not fits:
        raise ValueError(f"{key} has {count} values, which does not fit shape {shape}")
    if isinstance(values, list):
        if len(shape) == 1:
            return values
        values = np.array([*values, None], object)[:-1]  # the None keeps NumPy from making fixed-width strings
    shaped = values.reshape([-1 if size is None else size for size in shape])
    return shaped if shape else shaped[()]


def _each(value: Any, depth: int, decode: Callable[[bytes], np.ndarray]) -> Any:
    """Apply `decode` to the byte strings under `depth` levels of lists, stacking equal shapes."""
    if depth == 0:
        return decode(value)
    parts = [_each(item, depth - 1, decode) for item in value]
    same = len({getattr(part, "shape", None) for part in parts}) == 1 and isinstance(parts[0], np.ndarray)
    return np.stack(parts) if same else parts


def _decompress(data: bytes, key: str, most: int) -> bytes:
    """At most `most` bytes (0: all), so that a few bytes cannot claim the whole memory."""
    decompressor = zlib.decompressobj()
    try:
        raw = decompressor.decompress(data, most)
    except zlib.error as error:
        raise ValueError(f"{key}: {error}") from None
    if not decompressor.eof:
        raise ValueError(f"{key}: a compressed tensor is cut short, or larger than its shape")
    return raw
