"""The hand count of RT-2's operations against torch's flop counter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rt_models.cost.rt2_flops import cost, vlm_cost
from rt_models.language.generation import predict_actions
from rt_models.rt2 import RT2, RT2Config
from rt_models.rt2_vlm import FrozenVision, FullTuning, LoRA, RT2VLMConfig
from rt_models.vision.vit import ViTConfig
from tests.support.rt2_rows import INSTRUCTIONS, MINIMAL, make_batch, prompts_of

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


@pytest.mark.parametrize("family", ["paligemma", "smolvlm", "qwen2_vl"])
@pytest.mark.parametrize("tuning", [FullTuning(), FrozenVision(), LoRA(rank=2)])
def test_a_pretrained_models_step_counts_what_torch_counts(family: str, tuning: FullTuning, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra vlm")
    from tests.support.rt2_folders import FAMILIES

    config = RT2VLMConfig.paligemma(str(FAMILIES[family](tmp_path)), tuning=tuning)
    model, batch, counted = config.build(), make_batch(config.build_text()), vlm_cost(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # as in test_flops.py
        loss = model.loss(batch)
        if isinstance(tuning, FullTuning):
            assert 3 * counter.get_total_flops() == pytest.approx(counted.training_flops(batch), rel=1e-3)
        loss.backward()
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    if not isinstance(tuning, FullTuning):  # the first layers' inputs need no gradient: much in two-layer models
        assert counter.get_total_flops() == pytest.approx(counted.training_flops(batch), rel=0.1)
    twice = batch | {"frames": torch.cat([batch["frames"]] * 2)}
    assert counted.training_flops(twice) - counted.training_flops(batch) == 3 * counted.picture_flops
