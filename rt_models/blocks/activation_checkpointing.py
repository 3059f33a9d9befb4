"""Activation checkpointing: keep a block's inputs, run it again in the backward pass (Chen et al., 2016)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rt_models.blocks.batch_norm import averages_untouched


def recomputed(block: nn.Module, *inputs: object) -> Tensor:
    """`block(*inputs)`, holding no activation inside the block until its gradient is asked for."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), averages_untouched(block)

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)  # type: ignore[return-value]
