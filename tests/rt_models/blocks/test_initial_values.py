"""Where weights follow, nothing is drawn, and what is not random is there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rt_models.blocks.initial_values import do_weights_follow, weights_follow
from rt_models.rt1 import RT1Config
from rt_models.vision.vit import ViTConfig
from tests.support.rt2_rows import MINIMAL

TINY = RT1Config.tiny()
VIT = replace(TINY, backbone=ViTConfig(patch_size=4, width=16, num_layers=1, num_heads=2, hidden=32))


@pytest.mark.parametrize("config", [TINY, VIT, MINIMAL], ids=["rt1", "vit", "rt2"])
def test_nothing_is_drawn_and_constants_stand(config: Any) -> None:
    drawn, before = config.build(), torch.get_rng_state()
    with weights_follow():
        left = config.build()
    assert torch.equal(torch.get_rng_state(), before)
    assert not do_weights_follow()
    for (name, value), other in zip(drawn.named_buffers(), left.buffers(), strict=True):
        assert torch.equal(value, other), name
    for (name, value), other in zip(drawn.named_parameters(), left.parameters(), strict=True):
        if len(value.unique()) == 1:  # zeros or ones
            assert torch.equal(value, other), name
    left.load_state_dict(drawn.state_dict())
    assert all(torch.equal(value, other) for value, other in zip(drawn.parameters(), left.parameters(), strict=True))


def test_it_ends_with_its_block_however_that_ends() -> None:
    with pytest.raises(KeyError), weights_follow():
        assert do_weights_follow()
        raise KeyError
    assert not do_weights_follow() and len(torch.nn.Linear(8, 8).weight.unique()) > 1
