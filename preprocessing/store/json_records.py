"""Dataclasses from parsed JSON, strictly: a missing or mistyped value is an error that names its place.

Fields may be str, int, float, bool, Literal, dataclasses, `tuple[X, ...]`, `dict[str, X]`, `X | None`, Any, and classes
with `from_json`.
Keys that the class does not have are ignored, so that files of later versions can be read.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import lru_cache
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

_JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "a bool",
}


def read_record(kind: type[T], data: object, place: str = "") -> T:
    """`data` as the dataclass `kind`. Raises KeyError for a missing key, TypeError for a value of another type."""
    values: dict[str, object] = {}
    for field, hint in _fields(kind):
        where = f"{place}.{field.name}" if place else field.name
        if field.name in _checked(dict, data, place):
            values[field.name] = _value(hint, data[field.name], where)  # type: ignore[index]
        elif field.default is MISSING and field.default_factory is MISSING:
            raise KeyError(where)
    return kind(**values)


def to_text(value: object) -> str:
    """JSON of plain values, of dataclasses as objects, and of what has `to_json`."""
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> object:
    return value.to_json() if hasattr(value, "to_json") else {f.name: getattr(value, f.name) for f in fields(value)}


@lru_cache
def _fields(kind: type) -> tuple[tuple[Field[Any], Any], ...]:
    hints = get_type_hints(kind)
    return tuple((field, hints[field.name]) for field in fields(kind))


def _value(hint: Any, value: object, place: str) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is UnionType:
        return None if value is None else _value(parts[0], value, place)
    if origin is Literal:
        if value not in parts:
            raise TypeError(f"{place or 'it'} is {json.dumps(value)[:40]}, not one of {', '.join(map(str, parts))}")
        return value
    if origin is tuple:
        items = _checked(list, value, place)
        if all(type(item) is parts[0] for item in items):
            return tuple(items)
        return tuple(_value(parts[0], item, f"{place}[{number}]") for number, item in enumerate(items))
    if origin is dict:
        return {key: _value(parts[1], item, f"{place}.{key}") for key, item in _checked(dict, value, place).items()}
    if hasattr(hint, "from_json"):
        return hint.from_json(_checked(dict, value, place))
    if is_dataclass(hint):
        return read_record(hint, value, place)  # type: ignore[arg-type]
    return value if hint is float and type(value) is int else _checked(hint, value, place)


def _checked(kind: type, value: object, place: str) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{place or 'it'} is {json.dumps(value)[:40]}, not {_JSON_NAMES[kind]}")
    return value
