"""Imports without garbage collection: torch, MLflow and Ray make some 400,000 objects that live until the process ends.

Python's garbage collector traverses them again and again during the imports, and once more at exit: half of the CPU
time of a short command (docs/measured.md).
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_MANY = 100  # new modules; gc.freeze takes all objects, not only theirs, and fewer modules are not worth that
_DEFERRED_THRESHOLD = 200_000  # new objects; a training worker has more after its imports


@contextmanager
def quick_imports() -> Iterator[None]:
    """No garbage collection inside the block; after a large import later collections leave out the objects it made."""
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
    """No collection when the interpreter exits: the system takes back all memory at once."""
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


def defer_collection() -> None:
    """For a process that begins with imports not its own, as Ray's do: the first garbage collection waits for them.

    It waits for `_DEFERRED_THRESHOLD` new objects or for `resume_collection`; later collections leave out the objects
    that exist by then.
    """
    if _at_first_collection not in gc.callbacks:
        gc.set_threshold(_DEFERRED_THRESHOLD, *gc.get_threshold()[1:])
        gc.callbacks.append(_at_first_collection)


def resume_collection() -> None:
    """Collect at the usual thresholds from now on; no effect where collection was not deferred."""
    if _at_first_collection in gc.callbacks:
        gc.callbacks.remove(_at_first_collection)
        gc.set_threshold(*_THRESHOLDS)
        gc.freeze()


def _at_first_collection(phase: str, info: dict[str, int]) -> None:
    resume_collection()


_THRESHOLDS = gc.get_threshold()
