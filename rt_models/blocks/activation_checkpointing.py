"""Activation checkpointing: keep less of a block, compute the rest again in the backward pass (Chen et al., 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from rt_models.blocks.batch_norm import averages_untouched

ActivationCheckpointing = Literal["off", "selective", "blocks"]

_Contexts = tuple[AbstractContextManager[object], AbstractContextManager[object]]

_aten = torch.ops.aten
PRODUCTS = [
    _aten.convolution.default,
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]
"""The operations with nearly all of a block's FLOPs. "selective" keeps what they return; norms, activations, gates and
residuals, which are limited by memory and hold two thirds of a block's activations, are computed again."""


def checkpointed(block: nn.Module, mode: ActivationCheckpointing, *inputs: object) -> Tensor:
    """`block(*inputs)`, which in training holds for the backward pass what `mode` says.

    "off": all activations; "selective": what `PRODUCTS` return; "blocks": the inputs alone.
    """
    if mode == "off" or not block.training:
        return block(*inputs)

    def contexts() -> _Contexts:
        forward, again = selective_contexts() if mode == "selective" else (nullcontext(), nullcontext())
        return forward, _both(again, averages_untouched(block))

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)  # type: ignore[return-value]


def selective_contexts() -> _Contexts:
    """`context_fn` of torch's checkpoint: keep what `PRODUCTS` return."""
    forward, again = create_selective_checkpoint_contexts(PRODUCTS)
    return _both(forward, _KeptStaysAsItIs()), again


class _KeptStaysAsItIs(TorchDispatchMode):
    """Raises RuntimeError where what `PRODUCTS` returned is changed in place.

    Running the block again would begin with the changed values and change them once more: the loss would be right and
    the gradient wrong. torch notices by the tensor's version, which the view of a product of more than two axes does
    not share; so the memory is looked at here. DeepSpeed's linear layer for ZeRO-3 added its bias like that.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            given = [*args, *kwargs.values()]
            places = [*func._schema.arguments[: len(args)], *(_argument(func, name) for name in kwargs)]
            for value, place in zip(given, places, strict=True):
                is_written = place.alias_info is not None and place.alias_info.is_write
                if is_written and isinstance(value, Tensor) and _memory(value) in self._kept:
                    raise RuntimeError(
                        f"{func} changes in place what selective activation checkpointing keeps: compute it without, "
                        f"or set activation_checkpointing to blocks or off"
                    )
        result = func(*args, **kwargs)
        if func in PRODUCTS:
            self._kept |= {_memory(each) for each in pytree.tree_leaves(result) if isinstance(each, Tensor)}
        return result


def _argument(func: Any, name: str) -> Any:
    return next(argument for argument in func._schema.arguments if argument.name == name)


def _memory(tensor: Tensor) -> int:
    """Names the storage, also on the meta device, where no storage has an address."""
    return tensor.untyped_storage()._cdata


@contextmanager
def _both(*contexts: AbstractContextManager[object]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
