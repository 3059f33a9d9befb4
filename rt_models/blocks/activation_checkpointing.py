"""Activation checkpointing: keep a block's inputs, run it again in the backward pass (Chen et al., 2016)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rt_models.blocks.batch_norm import averages_untouched

ActivationCheckpointing = Literal["off", "blocks"]


def checkpointed(block: nn.Module, mode: ActivationCheckpointing, *inputs: object) -> Tensor:
    """`block(*inputs)`, which in training holds all its activations ("off") or its inputs alone ("blocks") until its
    gradient is asked for."""
    if mode == "off" or not block.training:
        return block(*inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), averages_untouched(block)

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)  # type: ignore[return-value]
