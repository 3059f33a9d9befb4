"""What one training step asks of a GPU, counted without one: FLOPs, bytes and kernel launches, before and after.

    python benchmarks/step_counts.py [--toy]

The step (forward, backward, Adam) of the preset rt1 in bf16 runs on tensors that have shapes and no memory. Every
operation that computes counts as one launch that reads its inputs and writes its outputs once; views count nothing.
Sides: "torch": PyTorch's own operations; "ours": the Triton kernels of rt_models/blocks/ and vision/image_kernels.py
where they would run, each counted by the tensors it is given. Adam: one launch ("fused") over
16 + 12 bytes a parameter; for "torch" one launch of each of its operations over all parameters.

The least time on a card is the larger of FLOPs by its matrix rate and bytes by its memory rate; launches take a host
some 5 us each, unless a CUDA graph replays them. Where a cache holds what the next kernel reads, fewer bytes are moved.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from workload import PRESETS, batch

from rt_models.blocks.triton_kernels import run_kernels
from rt_models.cost.rt1_flops import cost
from rt_models.vision.image_plan import plan_images

MATRIX_RATE, MEMORY_RATE, LAUNCH_S = 790e12, 4.3e12, 5e-6  # H200: measured product, data sheet; a launch by PyTorch
CASES = {"32 plain windows": (32, 1), "8 segments of 12": (8, 12)}
TOY_CASES = {"2 plain windows": (2, 1), "1 segment of 2": (1, 2)}
FREE = (
    "prim.device",
    "aten.empty",
    "aten.detach",
    "aten.new_empty",
    "aten.empty_like",
    "aten.empty_strided",
    "aten.new_empty_strided",
)


@dataclass
class Counts:
    """Of one step."""

    launches: int = 0
    bytes: int = 0
    flops: int = 0

    def add(self, *tensors: Any) -> None:
        """One kernel over these tensors, each read or written once."""
        self.launches += 1
        self.bytes += sum(each.numel() * each.element_size() for each in tensors if isinstance(each, Tensor))


class CountOperations(TorchDispatchMode):
    """Adds every operation that computes to `counts`."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self._is_free(func):
            self.counts.add(*tree_leaves(args), *tree_leaves(out))
        return out

    def _is_free(self, func: Any) -> bool:
        is_view = any(value.alias_info and not value.alias_info.is_write for value in func._schema.returns)
        return is_view or str(func).rpartition(".")[0] in FREE


def count_step(mode: FakeTensorMode, preset: str, segments: int, windows: int, *, ours: bool) -> Counts:
    """Of a step on so many segments of so many windows."""
    made = batch(preset, num_segments=segments, windows_per_segment=windows)
    images = len(made["frames"])
    made = plan_images(made, crops=True, capacities=(images,))
    config = PRESETS[preset]()
    config = replace(config, compute=replace(config.compute, precision="bf16"))
    counts = Counts()
    real = config.build().to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    with (
        patch.object(type(real), "_checks_values", lambda _: False),
        patch("rt_models.blocks.batch_norm._surely_finite", lambda *_: False),  # as on a GPU
        mode,
    ):
        model = without_memory(real, mode)
        fake = {key: mode.from_tensor(value) for key, value in made.items()}
        with CountOperations(counts):
            kernels = (lambda _, arguments, __: counts.add(*arguments)) if ours else "off"
            with run_kernels(kernels, device="cpu"):
                model.loss(fake).backward()
        parameters = sum(each.numel() for each in model.parameters())
    # Not torch's counter, which takes the gradients of depthwise convolutions for those of full ones: 12 times as many.
    count = segments * windows
    counts.flops = round(count * cost(config).training_flops(images / count))
    # Adam reads weight, gradient and two moments and writes three of them; in pieces it passes over them eleven times.
    counts.launches += 1 if ours else 11
    counts.bytes += parameters * 4 * (7 if ours else 25)
    return counts


def without_memory(model: nn.Module, mode: FakeTensorMode) -> Any:
    """The model on tensors that have shapes alone."""
    for part in model.modules():
        for named in (part._parameters, part._buffers):
            named |= {name: mode.from_tensor(value) for name, value in named.items() if value is not None}
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="the preset small on two windows")
    toy = parser.parse_args().toy
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # one: the models keep constants of their own between steps
    for case, (segments, windows) in (TOY_CASES if toy else CASES).items():
        for side in ("torch", "ours"):
            counts = count_step(mode, "small" if toy else "rt1", segments, windows, ours=side == "ours")
            print(json.dumps(described(case, side, counts)), flush=True)


def described(case: str, side: str, counts: Counts) -> dict[str, Any]:
    return {
        "case": case,
        "side": side,
        "tflop": round(counts.flops / 1e12, 3),
        "gigabytes": round(counts.bytes / 1e9, 2),
        "launches": counts.launches,
        "matrix_ms": round(1e3 * counts.flops / MATRIX_RATE, 1),
        "memory_ms": round(1e3 * counts.bytes / MEMORY_RATE, 1),
        "launch_ms": round(1e3 * counts.launches * LAUNCH_S, 1),
    }


if __name__ == "__main__":
    main()
