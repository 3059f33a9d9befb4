"""Models whose weights are read afterwards: building one then draws no random numbers and reads no other weights.

For a model of three billion parameters drawing takes the better part of a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FunctionType
from typing import Any

from torch.overrides import TorchFunctionMode

_drawn = ContextVar("drawn", default=True)


@contextmanager
def weights_follow() -> Iterator[None]:
    """Inside, random initial values are whatever lies in their memory; zeros, ones and what is computed are as ever.

    All parameters must be overwritten afterwards.
    """
    before = _drawn.set(False)
    try:
        with _NothingDrawn():
            yield
    finally:
        _drawn.reset(before)


def do_weights_follow() -> bool:
    """Whether a model that is built now gets its weights from elsewhere."""
    return not _drawn.get()


class _NothingDrawn(TorchFunctionMode):
    """nn.init's functions that tell torch's modes of themselves do nothing; ours ask `do_weights_follow`.

    What they are made of is left alone: a truncated normal is drawn until every number fits.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # By name: transformers puts functions of its own into nn.init while it builds a model.
        if isinstance(func, FunctionType) and func.__name__ in ("uniform_", "normal_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
