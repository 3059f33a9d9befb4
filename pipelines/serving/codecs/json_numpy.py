"""JSON with arrays as PyPI's json-numpy writes them, which OpenVLA's clients send: {"__numpy__": base64, "dtype",
"shape"}."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import numpy as np

from pipelines.serving.codecs.arrays import array_of
from pipelines.serving.codecs.json_text import parsed
from pipelines.serving.refusal import Refusal


def read(body: bytes | str) -> dict[str, object]:
    """The fields of a request. Raises Refusal, naming the field."""
    fields = parsed(body)
    if not isinstance(fields, dict):
        raise Refusal(f"the request must be an object of fields, got {type(fields).__name__}")
    return {name: _value(value, name[:60]) for name, value in fields.items()}


def is_array(value: object) -> bool:
    """Whether this plain JSON value is an array in json-numpy's form."""
    return isinstance(value, dict) and "__numpy__" in value


def array(value: np.ndarray) -> dict[str, object]:
    """An array for JSON."""
    content = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    return {"__numpy__": content, "dtype": value.dtype.str, "shape": list(value.shape)}


def _value(value: object, path: str) -> object:
    if isinstance(value, dict) and "__numpy__" in value:
        return _array(value, path)
    if isinstance(value, dict):
        return {name: _value(inner, f"{path}.{name[:60]}") for name, inner in value.items()}
    return value


def _array(value: Mapping[str, object], path: str) -> np.ndarray:
    try:
        content = value["__numpy__"]
        if not isinstance(content, str):
            raise ValueError("__numpy__ must be base64")
        return array_of(value.get("dtype"), value.get("shape"), base64.b64decode(content, validate=True))
    except ValueError as error:
        raise Refusal(f"{path}: {error}", field=path) from None
