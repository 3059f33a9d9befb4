"""Activation checkpointing: keep less of a block, compute the rest again in the backward pass (Chen et al., 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
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
    return create_selective_checkpoint_contexts(PRODUCTS)


@contextmanager
def _both(*contexts: AbstractContextManager[object]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
