"""Imports without searches for garbage: torch, MLflow and Ray make some 400,000 objects that stay until the end.

Python's collector goes through them again and again while they come, and once more when it exits: half of the CPU time
of a short command (docs/measured.md).
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_MANY = 100  # new modules: what fewer leave is not worth keeping out of later searches with all else that is there
_FIRST = 200_000  # objects; a worker of a training has more after its imports


@contextmanager
def quick_imports() -> Iterator[None]:
    """Nothing is searched inside the block, and what a large import leaves is not searched later either."""
    if not gc.isenabled():  # inside another block, or somebody's choice
        yield
        return
    before = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) - before > _MANY:
            gc.freeze()
        gc.enable()


def quick_exit() -> None:
    """When the interpreter ends, it does not search what the system takes back at once."""
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


def quick_start() -> None:
    """For a process that begins with imports not its own, as Ray's do: the first search waits for them.

    It comes with `_FIRST` new objects, or with `end_quick_start`; what is there then is not searched later.
    """
    if _at_first_search not in gc.callbacks:
        gc.set_threshold(_FIRST, *gc.get_threshold()[1:])
        gc.callbacks.append(_at_first_search)


def end_quick_start() -> None:
    """From now on the collector searches as ever; nothing, where it does already."""
    if _at_first_search in gc.callbacks:
        gc.callbacks.remove(_at_first_search)
        gc.set_threshold(*_THRESHOLDS)
        gc.freeze()


def _at_first_search(phase: str, info: dict[str, int]) -> None:
    end_quick_start()


_THRESHOLDS = gc.get_threshold()
