"""The hand count of operations against torch's counter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rt_models.blocks.sequence import OutputSteps
from rt_models.cost.rt1_flops import cost
from rt_models.rt1 import RT1, ComputeConfig, RT1Config
from rt_models.spec import StateInput
from rt_models.vision.vit import ViTConfig

TINY = RT1Config.tiny()
CONFIGS = {
    "tiny": TINY,
    "tf": replace(TINY, transformer=replace(TINY.transformer, mask="tf", feed_forward="linear_bias")),
    "vit": replace(TINY, backbone=ViTConfig(patch_size=4, width=16, num_layers=2, num_heads=2, hidden=32)),
    "no film, mask": replace(TINY, conditioning="none", image_channels="rgb+mask"),
    "positions as tokens": replace(TINY, token_learner=False, num_image_tokens=16),
    "rt1": RT1Config.rt1(),
    "rt1_jax": RT1Config.rt1_jax(),
    "rt1x": RT1Config.rt1x(),
    "two cameras, state": replace(TINY, cameras=("image", "wrist"), state=StateInput(names=("x", "y", "z"))),
    "rt1x, two cameras": replace(RT1Config.rt1x(), cameras=("image", "wrist")),
}


def counted(run: object) -> int:
    # The fused attention kernels of the CPU are unknown to the counter; the plain one is two matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()  # type: ignore[operator]
    return counter.get_total_flops()


def on_meta(config: RT1Config) -> RT1:
    with torch.device("meta"):
        return config.build().to("meta").eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_operations_and_parameters_are_those_counted(name: str) -> None:
    config = CONFIGS[name]
    model, expected = on_meta(config), cost(config)
    size = config.input.image_size
    image = torch.empty(1, config.num_channels(), size, size, device="meta")
    cameras, steps = len(config.cameras), config.num_steps

    def window(steps: int, output_steps: OutputSteps) -> None:
        shape = (1, steps, cameras, config.num_image_tokens, config.feature_width)
        tokens = torch.empty(shape, device="meta")
        if model.robot_tokens is None:
            tokens = tokens[:, :, 0]
        else:
            size = config.state_size()
            values = torch.empty(1, steps, size, device="meta"), torch.empty(1, size, dtype=torch.bool, device="meta")
            tokens = model.robot_tokens(tokens, None, values)
        rest = config.num_steps - steps
        model.action_logits(torch.cat([tokens] + [tokens[:, :1]] * rest, dim=1), output_steps=output_steps)

    with torch.no_grad():
        assert counted(lambda: model.tokenizer(image, torch.empty(1, 512, device="meta"))) == expected.frame_flops
        assert counted(lambda: window(steps, "all")) == expected.window_flops
        assert counted(lambda: window(1, "last")) == expected.control_flops
    assert expected.control_step_flops() == cameras * expected.frame_flops + expected.control_flops
    assert sum(parameter.numel() for parameter in model.parameters()) == expected.parameters


def test_training_is_three_forwards_within_three_percent() -> None:
    # With ViT: the counter takes the gradient of a depthwise convolution for that of a dense one.
    config = replace(RT1Config.rt1_jax(), backbone=ViTConfig())
    model, expected = on_meta(config).train(), cost(config)
    image = torch.empty(6, 3, 300, 300, device="meta")
    embedding = torch.empty(6, 512, device="meta")

    def step() -> None:
        tokens = model.tokenizer(image, embedding)
        model.action_logits(tokens[None]).sum().backward()

    assert counted(step) == pytest.approx(expected.training_flops(6), rel=0.03)


def test_shared_frames_and_recomputation_are_in_the_training_cost() -> None:
    plain = cost(TINY)
    recomputing = cost(replace(TINY, compute=ComputeConfig(activation_checkpointing="blocks")))
    assert recomputing.training_flops(3) - plain.training_flops(3) == 3 * plain.frame_flops
    assert plain.training_flops(3) - plain.training_flops(1.5) == pytest.approx(4.5 * plain.frame_flops)


def test_b3_costs_what_its_paper_says() -> None:
    assert cost(RT1Config.rt1_jax()).frame_flops / 2 == pytest.approx(
        1.9e9, rel=0.05
    )  # 1.8e9 without FiLM and 512-wide head
