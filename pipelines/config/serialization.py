"""Frozen dataclasses <-> plain JSON or YAML data, strictly: unknown, missing or mistyped fields are errors with a path.

A field that may hold one of several config classes is written with the class it holds:
`engine: {type: TorchEngineConfig, precision: bf16}`.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from preprocessing.store.json_files import JsonObject

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

_FORMER_NAMES = {"MergedBytes": "BytePairConfig"}  # config classes as checkpoints of version 0.1 name them


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which no key stands twice, and 1e-3 is a number as in YAML 1.2 (PyYAML reads it as a text)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is given twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: str) -> object:
    """The content of a YAML file, plain data only. Raises ValueError, naming the file, for what is none."""
    try:
        with Path(path).open() as file:
            return yaml.load(file, Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        texts = {RecursionError: "it is nested too deeply", UnicodeDecodeError: "it is no text in UTF-8"}
        reason = texts.get(type(error)) or " ".join(str(error).split())
        raise ValueError(f"{path} is not YAML of plain data: {reason.rstrip(' ^')}") from error


def to_plain(config: object) -> JsonObject:
    """A config, which is a dataclass, as plain data: its class name stands under "type", and tuples become lists."""
    values = {f.name: _plain(getattr(config, f.name)) for f in fields(typing.cast("DataclassInstance", config))}
    return {"type": type(config).__name__, **values}


def _plain(value: object) -> object:
    if is_dataclass(value):
        return to_plain(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def from_plain(kind: type[T], data: object, *, base: T | None = None, path: str = "") -> T:
    """Build `kind` from plain data; fields not given come from `base`, else from the class's defaults."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{path or kind.__name__}: expected a mapping of fields, got {shortened(data)}")
    hints = typing.get_type_hints(kind)
    settings = {key: value for key, value in data.items() if key != "type"}
    for key in settings:
        if key not in hints:
            hint = did_you_mean(str(key), list(hints))
            raise ValueError(f"{_join(path, key)} is not a setting of {kind.__name__}{hint}")
    values = {}
    for field in fields(typing.cast("type[DataclassInstance]", kind)):
        name = field.name
        inherited = getattr(base, name) if base is not None else None
        if name in settings:
            values[name] = read_value(hints[name], settings[name], inherited=inherited, path=_join(path, name))
        elif base is not None:
            values[name] = inherited
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{_join(path, name)} is missing")
    return kind(**values)


def with_present_names(data: JsonObject) -> JsonObject:
    """Plain data with the config classes under their names of today."""
    named = {key: _with_present_names(value) for key, value in data.items()}
    if "type" in named:
        name = str(named["type"])
        named["type"] = _FORMER_NAMES.get(name, name)
    return named


def _with_present_names(data: object) -> object:
    if isinstance(data, dict):
        return with_present_names(data)
    return [_with_present_names(item) for item in data] if isinstance(data, list) else data


def flatten(data: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay whole."""
    flat: dict[str, object] = {}
    for key, value in data.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def did_you_mean(word: str, known: list[str]) -> str:
    """The end of an error sentence: the nearest known name, or all of them where none is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f": did you mean {near[0]!r}?" if near else f": known are {', '.join(sorted(known))}"


def members(hint: object) -> tuple[Any, ...]:
    """The alternatives of a union, or the type itself."""
    return (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )


def read_value(hint: object, value: object, *, inherited: Any = None, path: str = "") -> Any:
    """A value of the type `hint`, which may be a union of config classes; `inherited` fills what is not given."""
    choices = members(hint)
    classes = {choice.__name__: choice for choice in choices if isinstance(choice, type) and is_dataclass(choice)}
    if classes and isinstance(value, Mapping):
        name = value.get("type", type(inherited).__name__ if inherited is not None else next(iter(classes)))
        name = _FORMER_NAMES.get(str(name), name)
        if not isinstance(name, str) or name not in classes:
            raise ValueError(f"{path}: no config class {name!r}{did_you_mean(str(name), list(classes))}")
        base = inherited if type(inherited) is classes[name] else None
        return from_plain(classes[name], value, base=base, path=path)
    if any(typing.get_origin(choice) is dict for choice in choices) and isinstance(value, Mapping):
        (_, kind) = typing.get_args(choices[0])
        return {**(inherited or {}), **{k: read_value(kind, v, path=_join(path, k)) for k, v in value.items()}}
    for choice in choices:
        matched, read = _read_leaf(choice, value, path)
        if matched:
            return read
    expected = " or ".join(_called(choice) for choice in choices)
    raise ValueError(f"{path}: expected {expected}, got {shortened(value)}")


_KINDS: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    tuple: "a list",
    dict: "a mapping",
    types.NoneType: "null",
}


def _called(hint: object) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return _KINDS.get(typing.get_origin(hint) or hint) or getattr(hint, "__name__", str(hint))


def _read_leaf(hint: object, value: object, path: str) -> tuple[bool, object]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments, value
    if origin is tuple and isinstance(value, list | tuple):
        kinds = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(value):
            raise ValueError(f"{path}: expected {len(kinds)} values, got {len(value)}")
        places = enumerate(zip(kinds, value, strict=True))
        return True, tuple(read_value(k, v, path=f"{path}[{i}]") for i, (k, v) in places)
    if hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return True, float(value)
        return False, value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint is types.NoneType:
        return value is None, None
    return isinstance(hint, type) and isinstance(value, hint), value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
