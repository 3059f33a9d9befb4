"""TensorFlow ops on strings: regular expressions, splitting, joining, hash buckets, lookup tables.

Regular expressions are RE2's, whose classes of Unicode Python's `re` does not know; pyarrow brings the same library
that TensorFlow has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.saved_model.farm_hash import fingerprint64
from preprocessing.saved_model.op import Attributes, Op, texts


def _each(function: Callable[[bytes], Any], x: np.ndarray, dtype: Any) -> np.ndarray:
    values = [function(text) for text in x.reshape(-1).tolist()]
    return texts(values, x.shape) if dtype is object else np.array(values, dtype).reshape(x.shape)


def _arrow(x: np.ndarray) -> pa.Array:
    return pa.array(x.reshape(-1).tolist(), pa.string())


def _replaced(x: np.ndarray, pattern: str, rewrite: str, everywhere: bool) -> np.ndarray:
    options = pc.ReplaceSubstringOptions(pattern, rewrite, max_replacements=None if everywhere else 1)
    try:
        replaced = pc.call_function("replace_substring_regex", [_arrow(x)], options)
    except pa.ArrowInvalid as error:
        if "Rewrite schema requests" in str(error):  # a group that the pattern lacks: TensorFlow replaces nothing
            return x
        raise
    return texts([text.as_py().encode() for text in replaced], x.shape)


def _static_replace(attributes: Attributes, x: np.ndarray) -> np.ndarray:
    return _replaced(x, attributes["pattern"], attributes["rewrite"], attributes.get("replace_global", True))


def _replace(attributes: Attributes, x: np.ndarray, pattern: np.ndarray, rewrite: np.ndarray) -> np.ndarray:
    return _replaced(x, pattern.item().decode(), rewrite.item().decode(), attributes.get("replace_global", True))


def _matches(x: np.ndarray, pattern: str) -> np.ndarray:
    options = pc.MatchSubstringOptions(rf"\A(?:{pattern})\z")
    matched = pc.call_function("match_substring_regex", [_arrow(x)], options)
    return np.array(matched.to_pylist(), bool).reshape(x.shape)


def _sparse_words(words_of_text: list[list[bytes]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices (N, 2), the words and the dense shape."""
    indices = [(row, place) for row, words in enumerate(words_of_text) for place in range(len(words))]
    longest = max((len(words) for words in words_of_text), default=0)
    words = texts([word for words in words_of_text for word in words])
    return np.array(indices, np.int64).reshape(-1, 2), words, np.array([len(words_of_text), longest], np.int64)


def _split_at_any(attributes: Attributes, x: np.ndarray, delimiters: np.ndarray) -> tuple[np.ndarray, ...]:
    """The older split: every byte of the delimiter separates; without one, every byte stands alone."""
    every = delimiters.item()

    def words(text: bytes) -> list[bytes]:
        if not every or not text:
            return [text[place : place + 1] for place in range(len(text))]
        parts = text.translate(bytes.maketrans(every, every[:1] * len(every))).split(every[:1])
        return [part for part in parts if part] if attributes.get("skip_empty", True) else parts

    return _sparse_words([words(text) for text in x.tolist()])


def _split(attributes: Attributes, x: np.ndarray, separator: np.ndarray) -> tuple[np.ndarray, ...]:
    """At the separator, or where that is empty at any white space: as Python does, but what is left after
    `maxsplit` words counts even if it is nothing."""
    most = attributes.get("maxsplit", -1)

    def words(text: bytes) -> list[bytes]:
        if not most:
            return [text]
        parts = text.split(separator.item() or None, most)
        return [*parts, b""] if not separator.item() and len(parts) == most else parts

    return _sparse_words([words(text) for text in x.tolist()])


def _join(attributes: Attributes, *arrays: np.ndarray) -> np.ndarray:
    parts = [part.reshape(-1).tolist() for part in np.broadcast_arrays(*arrays)]
    separator = attributes.get("separator", "").encode()
    return texts([separator.join(row) for row in zip(*parts, strict=True)], np.broadcast(*arrays).shape)


def _reduce_join(attributes: Attributes, x: np.ndarray, axes: np.ndarray) -> np.ndarray:
    order = [int(axis) % x.ndim for axis in axes.reshape(-1)]
    kept = [axis for axis in range(x.ndim) if axis not in order]
    rows = x.transpose(kept + order).reshape(*(x.shape[axis] for axis in kept), -1)
    separator = attributes.get("separator", "").encode()
    shape = [1 if axis in order else size for axis, size in enumerate(x.shape)]
    joined = [separator.join(row) for row in rows.reshape(-1, rows.shape[-1]).tolist()]
    return texts(joined, shape if attributes.get("keep_dims") else [x.shape[axis] for axis in kept])


def _cased(change: Callable[[Any], Any]) -> Op:
    """ASCII letters alone, or every letter where the attribute asks for UTF-8."""

    def cased(attributes: Attributes, x: np.ndarray) -> np.ndarray:
        if attributes.get("encoding"):
            return _each(lambda text: change(text.decode()).encode(), x, object)
        return _each(change, x, object)

    return cased


def _length(attributes: Attributes, x: np.ndarray) -> np.ndarray:
    letters = attributes.get("unit", "BYTE") == "UTF8_CHAR"
    return _each(lambda text: len(text.decode() if letters else text), x, np.int32)


def _substring(attributes: Attributes, x: np.ndarray, first: np.ndarray, count: np.ndarray) -> np.ndarray:
    letters = attributes.get("unit", "BYTE") == "UTF8_CHAR"
    shape = np.broadcast_shapes(x.shape, first.shape, count.shape)

    def cut(text: bytes, place: int, length: int) -> bytes:
        whole = text.decode() if letters else text
        begin = place if place >= 0 else len(whole) + place
        part = whole[begin : begin + length]
        return part.encode() if isinstance(part, str) else part

    columns = (np.broadcast_to(array, shape).reshape(-1).tolist() for array in (x, first, count))
    return texts([cut(*row) for row in zip(*columns, strict=True)], shape)


def _bucket(attributes: Attributes, x: np.ndarray) -> np.ndarray:
    return _each(lambda text: fingerprint64(text) % attributes["num_buckets"], x, np.int64)


def _find(
    attributes: Attributes, keys: np.ndarray, values: np.ndarray, x: np.ndarray, default: np.ndarray
) -> np.ndarray:
    """`attributes` holds the two as a dictionary, made once."""
    table, absent = attributes["table"], default.item()
    found = [table.get(key, absent) for key in x.reshape(-1).tolist()]
    return texts(found, x.shape) if values.dtype == object else np.array(found, values.dtype).reshape(x.shape)


TEXT_OPS: dict[str, Op] = {
    "StaticRegexReplace": _static_replace,
    "RegexReplace": _replace,
    "StaticRegexFullMatch": lambda attributes, x: _matches(x, attributes["pattern"]),
    "RegexFullMatch": lambda attributes, x, pattern: _matches(x, pattern.item().decode()),
    "StringSplit": _split_at_any,
    "StringSplitV2": _split,
    "StringJoin": _join,
    "ReduceJoin": _reduce_join,
    "StringLower": _cased(lambda text: text.lower()),
    "StringUpper": _cased(lambda text: text.upper()),
    "StringStrip": lambda attributes, x: _each(bytes.strip, x, object),
    "StringLength": _length,
    "Substr": _substring,
    "StringToHashBucketFast": _bucket,
    "LookupTableFindV2": _find,
}
