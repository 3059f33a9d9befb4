"""Weights cast beforehand answer as those that autocast casts at every call."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rt_models.blocks.cast_weights import cast_weights
from rt_models.rt1 import RT1Config
from rt_models.rt2 import RT2Config
from rt_models.vision.fuse_batch_norm import fuse_batch_norm
from tests.support.rt1_windows import stirred


@torch.no_grad()
@pytest.mark.parametrize("kind", ["rt1", "rt2"])
def test_a_cast_model_says_what_it_says_under_autocast(kind: str) -> None:
    if kind == "rt1":
        model: nn.Module = fuse_batch_norm(stirred(RT1Config.tiny().build()).eval())
        inputs = torch.rand(2, 3, 16, 16, 3), torch.randn(2, 3, 512)
    else:
        model = stirred(RT2Config.tiny().build()).eval()
        inputs = torch.rand(2, 3, 64, 64), torch.randint(0, 500, (2, 9))
    cast = copy.deepcopy(model)
    cast_weights(cast)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(cast(*inputs).float(), model(*inputs).float(), rtol=0.02, atol=0.02)
    size, before = (sum(p.nbytes for p in each.parameters()) for each in (cast, model))
    assert size < (0.9 if kind == "rt1" else 0.75) * before  # FiLM, most of a tiny RT-1, is not cast


def test_an_output_tied_to_the_embedding_stays_as_it_is() -> None:
    model = nn.ModuleDict(
        {"embedding": nn.Embedding(5, 4), "output": nn.Linear(4, 5, bias=False), "own": nn.Linear(4, 4)}
    )
    model["output"].weight = model["embedding"].weight
    cast_weights(model)
    assert model["output"].weight is model["embedding"].weight and model["embedding"].weight.dtype == torch.float32
    assert model["own"].weight.dtype == torch.bfloat16
