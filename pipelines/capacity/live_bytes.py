"""The most bytes that tensors hold at one time while operations run, also of the meta device, which has no memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_BLOCK = 512  # a GPU's allocator hands out multiples of it


class LiveBytes(TorchDispatchMode):
    """Counts the memory of what operations inside make, from its making until nothing refers to it.

    `model`: what becomes a gradient of its parameters is counted apart; `there` are tensors that do not count. What an
    operation takes while it runs and gives back is not seen.
    """

    def __init__(self, model: nn.Module, there: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._living: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._there = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers(), *there)]
        self._uncounted = {storage._cdata for storage in self._there}
        self._gradients: set[int] = set()
        self.live = 0
        """Bytes now, gradients apart."""
        self.gradient = 0
        """Bytes of gradients now."""
        self.peak = 0
        """The most of both together."""
        self.peak_beside_gradients = 0
        """The most of all but gradients."""
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._is_gradient)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for value in tree_leaves(outputs):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        self.peak = max(self.peak, self.live + self.gradient)
        self.peak_beside_gradients = max(self.peak_beside_gradients, self.live)
        return outputs

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._living or key in self._uncounted:
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self._living[key] = weakref.ref(storage, lambda _: self._ended(key)), size
        self.live += size

    def _ended(self, key: int) -> None:
        _, size = self._living.pop(key)
        if key in self._gradients:
            self._gradients.discard(key)
            self.gradient -= size
        else:
            self.live -= size

    def _is_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        if key in self._living and key not in self._gradients:
            self._gradients.add(key)
            size = self._living[key][1]
            self.live, self.gradient = self.live - size, self.gradient + size
