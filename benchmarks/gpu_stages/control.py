"""Stage `control`: one action each for 1, 8 and 32 robots as a server answers them, the networks as a CUDA graph and
kernel by kernel."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator

import torch
from gpu_stages.rt1_step import preset, rt1
from gpu_stages.settings import Line, Settings
from gpu_stages.timing import Step, on_gpu, seconds
from workload import frames

from rt_models.control.rt1_policy import RT1Policy, act_together
from rt_models.spec import EMBEDDING_WIDTH


def control(settings: Settings) -> Iterator[Line]:
    """Robots of one policy's weights, each with its history, in one pass (`act_together`): from frames in the host's
    memory to actions there."""
    model = rt1(settings).eval()
    for graph, robots in itertools.product((True, False), (1, 2) if settings.toy else (1, 32, 8)):
        first = RT1Policy(model, cuda_graph=graph)
        policies = [first.for_another_robot() for _ in range(robots)]
        seen = list(frames(preset(settings), robots).numpy())
        words = list(torch.randn(robots, EMBEDDING_WIDTH))
        act = lambda policies=policies, seen=seen, words=words: act_together(policies, seen, words)  # noqa: E731
        measured = _latency(act, 3 if settings.toy else 60)
        rate = 1e3 * robots / measured["median_ms"]
        yield {"robots": robots, "side": "graph" if graph and on_gpu() else "eager", **measured, "actions_per_s": rate}


def _latency(run: Step, rounds: int) -> dict[str, float]:
    first = seconds(run)
    times = sorted(seconds(run) for _ in range(rounds))
    return {
        "first_s": first,
        "median_ms": 1e3 * statistics.median(times),
        "p95_ms": 1e3 * times[int(0.95 * len(times))],
    }
