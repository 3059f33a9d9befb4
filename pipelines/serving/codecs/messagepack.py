"""MessagePack from the network, with bounds on its parts, and errors that name the field.

A message is bounded in bytes, but a byte can become an object of 60: so containers are counted too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgpack
import numpy as np

from pipelines.serving.refusal import Refusal

Leaf = Callable[[Mapping[object, object]], object]
"""A map -> what it stands for, or the map itself. Raises ValueError for one that stands for something wrongly."""

_MOST_CONTAINERS = 10_000
_MOST_ITEMS = 100_000


@dataclass(frozen=True)
class _Wrong:
    """Stands in the place of a value that could not be read, until its path is known."""

    reason: str


def unpack(message: bytes, leaf: Leaf) -> dict[str, object]:
    """The map that `message` is, with the values that `leaf` makes. Raises Refusal, naming the field."""
    count = 0

    def counted() -> None:
        nonlocal count
        count += 1
        if count > _MOST_CONTAINERS:
            raise Refusal(f"the message has more than {_MOST_CONTAINERS} lists and maps")

    def of_map(pairs: Mapping[object, object]) -> object:
        counted()
        try:
            return leaf(pairs)
        except ValueError as error:
            return _Wrong(str(error))

    def of_list(items: list[object]) -> list[object]:
        counted()
        return items

    try:
        read = msgpack.unpackb(
            message,
            object_hook=of_map,
            list_hook=of_list,
            raw=False,
            strict_map_key=True,
            max_array_len=_MOST_ITEMS,
            max_map_len=_MOST_ITEMS,
            max_ext_len=0,
        )
    except Refusal:
        raise
    except Exception as error:  # msgpack raises its own kinds, ValueError, TypeError, KeyError, UnicodeDecodeError, ...
        raise Refusal(f"the message is not MessagePack ({type(error).__name__}: {error!s:.100})") from None
    if not isinstance(read, dict):
        raise Refusal(f"the message must be a map of fields, got {_called(read)}")
    _require_sound(read, "")
    return read


def _require_sound(value: object, path: str) -> None:
    if isinstance(value, _Wrong):
        raise Refusal(f"{path or 'the message'}: {value.reason}", field=path)
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise Refusal(f"{path or 'the message'} has the key {key!r:.40}: keys must be text", field=path)
            _require_sound(inner, f"{path}.{key:.60}" if path else f"{key:.60}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            if isinstance(inner, dict | list | _Wrong):
                _require_sound(inner, f"{path}[{place}]")


def _called(value: object) -> str:
    return value.reason if isinstance(value, _Wrong) else type(value).__name__


def pack(fields: Mapping[str, object], of_array: Callable[[np.ndarray], Mapping[object, object]]) -> bytes:
    """The message of these fields, whose arrays `of_array` makes maps."""

    def default(value: object) -> object:
        if isinstance(value, np.ndarray):
            return of_array(value)
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"{type(value).__name__} cannot be sent")

    packed = msgpack.packb(fields, default=default)
    assert packed is not None
    return packed
