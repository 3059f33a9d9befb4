"""The hand count of RT-2's operations against torch's flop counter."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rt2_rows import INSTRUCTIONS, MINIMAL, make_batch, prompts_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rt_models.rt2 import RT2, RT2Config
from rt_models.rt2_decoding import predict_actions
from rt_models.rt2_flops import cost
from rt_models.vit import ViTConfig

SIZES = [
    MINIMAL,
    replace(MINIMAL, prefix="causal", decoder=replace(MINIMAL.decoder, num_key_value_heads=4)),
    replace(MINIMAL, vision=ViTConfig(patch_size=8, width=16, num_layers=2, num_heads=2, stem="convolutions")),
]


@pytest.mark.parametrize("config", SIZES)
def test_a_training_step_counts_what_torch_counts(config: RT2Config) -> None:
    model, batch = RT2(config), make_batch(config.build_text())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # as in test_flops.py
        model.eval().loss(batch)
    assert 3 * counter.get_total_flops() == pytest.approx(cost(config).training_flops(batch), rel=1e-9)
    assert cost(config).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("config", SIZES)
def test_an_action_counts_what_torch_counts(config: RT2Config) -> None:
    text = config.build_text()
    batch = prompts_of(text, INSTRUCTIONS[:1])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # as in test_flops.py
        predict_actions(RT2(config).eval(), batch, text)
    counted = cost(config).action_flops(batch["tokens"].shape[1])
    assert counter.get_total_flops() == pytest.approx(counted, rel=1e-9)
    assert cost(config).action_flops(batch["tokens"].shape[1], cached=False) > 4 * counted


def test_the_published_sizes_cost_nothing_to_count() -> None:
    assert cost(RT2Config()).parameters == pytest.approx(58e6, rel=0.01)
