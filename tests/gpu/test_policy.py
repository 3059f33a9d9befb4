"""A policy on a GPU answers as on a CPU, and a replayed graph as the step that it was captured from."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.config.compute import Compute
from rt_models.blocks.cast_weights import cast_weights
from rt_models.control.control_step import CAPACITIES
from rt_models.control.rt1_policy import RT1Policy, act_together
from rt_models.rt1 import RT1, RT1Config
from tests.support.rt1_windows import stirred

SMALL = RT1Config.small()
ONE_HOT = replace(SMALL, transformer=replace(SMALL.transformer, mask="tf"), previous_actions="one_hot")
STEPS = 9


def fresh(config: RT1Config) -> RT1:
    torch.manual_seed(0)
    return stirred(config.build(), scale=0.02).eval()


def frames(robots: int) -> np.ndarray:
    return np.random.default_rng(robots).integers(0, 256, (STEPS, robots, 96, 128, 3), dtype=np.uint8)


def instructions(robots: int) -> np.ndarray:
    return np.random.default_rng(robots).standard_normal((robots, 512)).astype(np.float32) / 5


def logits_of(policy: RT1Policy, robots: int, precision: str = "fp32") -> torch.Tensor:
    """float (STEPS, R, A, V); one robot begins anew at the fifth step."""
    seen: list[torch.Tensor] = []
    step = policy._step

    def watched(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        window, logits = step(inputs)
        seen.append(logits.float().cpu())
        return window, logits

    policy._step = watched  # type: ignore[assignment]
    compute = Compute(precision=precision)  # type: ignore[arg-type]
    with compute.applied(compute.resolved()):
        for number, now in enumerate(frames(robots)):
            if number == 4:
                policy.reset([0])
            policy.act(now, instructions(robots))
    return torch.stack(seen)


@pytest.mark.parametrize("config", [SMALL, ONE_HOT], ids=["plain", "previous actions"])
@pytest.mark.parametrize("robots", [1, 3, 33])
def test_a_graph_says_what_the_step_says_and_a_cpu_too(config: RT1Config, robots: int) -> None:
    model = fresh(config)
    on_cpu = logits_of(RT1Policy(model, num_robots=robots), robots)
    model = copy.deepcopy(model).cuda()
    eager = RT1Policy(model, num_robots=robots, cuda_graph=False)
    graph = RT1Policy(model, num_robots=robots)
    eager_logits, graph_logits = logits_of(eager, robots), logits_of(graph, robots)
    torch.testing.assert_close(graph_logits, eager_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(graph_logits, on_cpu, rtol=0, atol=1e-3)


@pytest.mark.parametrize("cast", [False, True])
def test_a_graph_in_bf16_outlives_the_block_that_it_was_captured_in(cast: bool) -> None:
    model = fresh(SMALL).cuda()
    first = RT1Policy(model)
    if cast:
        cast_weights(first.model)
    together = [first.for_another_robot() for _ in range(3)]
    apart = RT1Policy(model, num_robots=3, cuda_graph=False)
    words = instructions(3)
    for now in frames(3):
        with Compute(precision="bf16").applied(torch.device("cuda")):
            actions = act_together(together, list(now), list(words))
        torch.empty(64 << 20, device="cuda").fill_(float("nan"))  # whatever was freed is overwritten
        with Compute(precision="bf16").applied(torch.device("cuda")):
            alone = apart.act(now, words)
        far = np.abs(np.stack([action.tokens for action in actions]) - alone.tokens)
        assert (far == 0).mean() > 0.9  # bf16 rounds differently in another batch
    assert set(first._step._graphs) == {next(size for size in CAPACITIES if size >= 3)}


def test_what_a_policy_answers_is_on_the_cpu_and_its_history_on_the_gpu() -> None:
    policy = RT1Policy(fresh(SMALL).cuda())
    action = policy.act(frames(1)[0][0], instructions(1)[0])
    assert isinstance(action.values, np.ndarray) and action.values.shape == (11,)
    assert policy._history is not None and policy._history.tokens_RTJD.is_cuda


def test_a_model_is_scored_on_the_gpu_and_comes_back() -> None:
    model = fresh(SMALL)
    with Compute().at_work(model) as device:
        assert device.type == "cuda" and next(model.parameters()).is_cuda
    assert not next(model.parameters()).is_cuda
