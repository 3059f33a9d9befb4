"""JSON that others wrote or damaged: whatever is wrong with it becomes one sentence that names the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object as `json` reads and writes it, where no record class describes it."""


def parsed(blob: bytes, path: str, *, remedy: str) -> JsonObject:
    """The JSON object in `blob`. Raises ValueError naming `path` if there is none."""
    with taken_apart(path, remedy=remedy):
        data = json.loads(blob)
        if not isinstance(data, dict):
            raise TypeError(f"it holds a {type(data).__name__}, not an object")
        return data


@contextmanager
def taken_apart(path: str, *, remedy: str) -> Iterator[None]:
    """Around code that takes JSON of unknown form apart; its ValueErrors keep their words and get the file's name."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): {remedy}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as text ({error}): {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is not as it was written ({reason}): {remedy}") from None
