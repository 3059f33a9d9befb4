"""What selective checkpointing keeps must not be changed in place: the loss would be right and the gradient wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from cluster import zero
from cluster.context import LocalContext
from rt_models.blocks.activation_checkpointing import PRODUCTS, checkpointed, selective_contexts


class Block(nn.Module):
    """gelu(Wx + b) of a tensor of three axes, with a bias that is added in place as some libraries do."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.bias, self.add = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5)), add

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.add(x @ self.weight, self.bias))


def gradient(loss: Tensor, block: Block) -> Tensor:
    return torch.autograd.grad(loss, block.weight)[0]


def test_a_bias_that_is_added_in_place_is_refused() -> None:
    torch.manual_seed(0)
    block, x = Block(torch.Tensor.add_), torch.randn(2, 3, 6)
    expected = gradient(block(x).square().sum(), block)
    faulty: Any = checkpoint(
        block, x, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(PRODUCTS)
    )
    assert torch.equal(faulty, block(x))  # torch's own contexts: the same loss,
    assert (gradient(faulty.square().sum(), block) - expected).norm() > 0.01 * expected.norm()  # another gradient
    with pytest.raises(RuntimeError, match="in place what selective activation checkpointing keeps"):
        checkpointed(block, "selective", x)
    right = checkpointed(Block(torch.add), "selective", x)
    assert right.shape == (2, 3, 5)


def test_what_is_not_kept_may_change_in_place() -> None:
    torch.manual_seed(0)
    block, x = Block(lambda y, bias: (y + bias).mul_(2)), torch.randn(2, 3, 6)
    expected = gradient(block(x).square().sum(), block)
    torch.testing.assert_close(gradient(checkpointed(block, "selective", x).square().sum(), block), expected)


def test_on_the_meta_device_no_storage_is_taken_for_another() -> None:
    with torch.device("meta"):
        block = Block(lambda y, bias: torch.zeros_like(y).add_(y + bias))
        checkpointed(block, "selective", torch.randn(2, 3, 6)).sum().backward()
    assert block.weight.grad is not None


def test_under_zero_3_a_linear_layer_adds_its_bias_once() -> None:
    pytest.importorskip("deepspeed", reason="needs DeepSpeed")
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 5), torch.randn(2, 3, 6)
    nn.init.normal_(layer.bias)
    expected = torch.autograd.grad(F.gelu(layer(x)).square().sum(), layer.weight)[0]
    zero.connect(LocalContext("cpu"))
    zero.shard(nn.Linear(1, 1), {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}})
    try:
        block: Any = lambda x: F.gelu(layer(x))  # noqa: E731
        kept: Any = checkpoint(block, x, use_reentrant=False, context_fn=selective_contexts)
        found = torch.autograd.grad(kept.square().sum(), layer.weight)[0]
    finally:
        zero.restore_linear()
    torch.testing.assert_close(found, expected)
