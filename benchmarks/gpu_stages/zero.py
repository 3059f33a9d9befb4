"""Stage `zero`: DeepSpeed's ZeRO-1 and ZeRO-3 on one GPU against plain PyTorch, the same model, batch and precision.

Plain is `TorchEngine`, with CUDA graphs, which DeepSpeed has none of, and without. It is measured before and after the
others, and a ratio is to the mean of both. Each side also says how often a step made the host wait for the device.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from gpu_stages import rt1_step
from gpu_stages.rt1_step import planned
from gpu_stages.settings import Line, Settings
from gpu_stages.timing import Step, device, free_memory, median_seconds, on_gpu, peak_gb, seconds
from workload import PRESETS, Batch, batch

from cluster.context import LocalContext
from cluster.engine import DeepSpeedEngineConfig, TorchEngineConfig
from cluster.zero import ZeroConfig, restore_linear
from pipelines.config.optimizer import AdamConfig

_PLAIN, _GRAPHS = "plain", "plain, graphs"


def zero(settings: Settings) -> Iterator[Line]:
    """Steps of an engine: forward, backward, clip, update."""
    import deepspeed  # noqa: F401

    made = planned(batch(rt1_step.preset(settings), **rt1_step.shapes(settings)["segments"]))
    times: dict[str, list[float]] = {}
    engines = _engines()
    for name in (_PLAIN, _GRAPHS, *(name for name in engines if name not in (_PLAIN, _GRAPHS)), _PLAIN, _GRAPHS):
        line = _trained(settings, engines[name], made)
        free_memory()
        times.setdefault(name, []).append(line["step_s"])
        yield {"side": name, **line}
    plain, graphs = (statistics.mean(times[name]) for name in (_PLAIN, _GRAPHS))
    for name, (step_s, *_) in times.items():
        if name not in (_PLAIN, _GRAPHS):
            yield {"side": name, "of_plain": plain / step_s, "of_plain_with_graphs": graphs / step_s}


def _engines() -> dict[str, Any]:
    plain = TorchEngineConfig(precision="bf16" if on_gpu() else "fp32", cuda_graphs="off")
    zeros = {"zero-1": ZeroConfig(stage=1), "zero-3": ZeroConfig(stage=3)}
    if on_gpu():
        zeros["zero-3, bf16 gathered"] = ZeroConfig(stage=3, communication="bf16")
    sharded = {name: DeepSpeedEngineConfig(precision=plain.precision, zero=zero) for name, zero in zeros.items()}
    return {_PLAIN: plain, _GRAPHS: replace(plain, cuda_graphs="auto"), **sharded}


def _trained(settings: Settings, config: Any, made: Batch) -> Line:
    windows = len(made["sample_id"])
    engine = config.build(LocalContext(device()), micro_batch=windows, accumulation=1)
    torch.manual_seed(0)
    losses = []
    try:
        model = PRESETS[rt1_step.preset(settings)]
        engine.build(lambda: model().build(), AdamConfig(lr=1e-4).build)
        engine.set_learning_rate(1e-4)

        def step() -> None:
            losses.append(engine.forward_backward(made))
            engine.step()

        first = seconds(step)
        for _ in range(3):  # a graph is recorded at the third batch of a shape
            step()
        step_s = median_seconds(step, 2 if settings.toy else 15)
        waits = host_waits(step, 3)
    finally:
        engine.close()
        restore_linear()
    line = {"windows": windows, "first_s": first, "step_s": step_s, "windows_per_s": windows / step_s, **waits}
    line |= {"gb": peak_gb(), "first_loss": float(losses[0]), "last_loss": float(losses[-1])}
    return line


def host_waits(step: Step, steps: int) -> Line:
    """How often a step made the host wait: by copies and the like, which torch's debug mode sees, and by asking for it;
    None on a CPU."""
    if not on_gpu():
        return {"waits_per_step": None, "waits_asked_for_per_step": None}
    asked = 0

    def counted(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal asked
            asked += 1
            return original(*args, **kwargs)

        return call

    torch.cuda.set_sync_debug_mode("warn")
    places = [(torch.cuda, "synchronize"), (torch.cuda.Event, "synchronize"), (torch.cuda.Stream, "synchronize")]
    try:
        with ExitStack() as stack:
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, counted(getattr(owner, name))))
            seen = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            for _ in range(steps):
                step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = sum("called a synchronizing" in str(warning.message) for warning in seen)
    return {"waits_per_step": found / steps, "waits_asked_for_per_step": asked / steps}
