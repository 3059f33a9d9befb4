"""What RT-1 costs on a GPU, stage by stage: needs torch alone, but for `loop`. Each stage is a process with
a time limit of its own.

    python benchmarks/gpu.py                      every stage, most valuable first
    python benchmarks/gpu.py --only control       one of them
    python benchmarks/gpu.py --toy                small sizes on the CPU, to see that the script runs

A stage prints JSON lines as it goes, so one that meets its limit keeps what it measured. Times are medians of steps
after warm-up, between device synchronisations; `first_s` is what the first step of its kind took.

- shapes: forward and backward of single convolutions for a number of images seen before and for a new one, by memory
  format and by cuDNN's choice of algorithm: which of them pay for every new number
- train: optimizer steps of the preset rt1 on plain windows and on segments, in torch's own kernels, in ours (Triton),
  and in ours as one CUDA graph; the bare EfficientNet-B3 of torchvision on as many images
- parity: loss and gradients with our kernels against torch's, in float32 without TF32 and under bf16, and of a batch
  padded with images against the same batch alone
- loop: `rtp train` in process (gpu_loop.py), to be set against `train`, with graphs and without
- control: one action each for 1, 8 and 32 robots as a server answers them, the networks as a CUDA graph and without
- profile: where the device time of a training step goes, by class of kernel
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from gpu_loop import loop
from torch import Tensor, nn
from workload import PRESETS, Batch, batch, frames

from rt_models.blocks import norm_functions
from rt_models.control.rt1_policy import RT1Policy, act_together
from rt_models.rt1 import RT1
from rt_models.spec import EMBEDDING_WIDTH
from rt_models.vision.image_plan import plan_images

LIMITS_S = {"shapes": 150, "train": 170, "loop": 200, "parity": 100, "control": 90, "profile": 60}


def main() -> None:
    arguments = _arguments()
    if len(arguments.only) == 1 and arguments.inside:
        STAGES[arguments.only[0]](arguments.toy)
        return
    for stage in arguments.only:
        command = [sys.executable, __file__, "--only", stage, "--inside", *(["--toy"] if arguments.toy else [])]
        began = time.monotonic()
        try:
            code: Any = subprocess.run(command, timeout=LIMITS_S[stage], check=False).returncode
        except subprocess.TimeoutExpired:
            code = f"cut off after {LIMITS_S[stage]} s"
        say(stage=stage, ended=code, seconds=round(time.monotonic() - began, 1))


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


# --- shapes ---


def shapes(toy: bool) -> None:
    """One convolution of each class of B3 at a time, so that what is slow has a name."""
    device, side, count = _device(), 8 if toy else 38, 3 if toy else 64
    kinds = {
        "pointwise 48-288": nn.Conv2d(48, 288, 1, bias=False),
        "depthwise 3x3": nn.Conv2d(288, 288, 3, padding=1, groups=288, bias=False),
        "depthwise 5x5": nn.Conv2d(288, 288, 5, padding=2, groups=288, bias=False),
        "depthwise 5x5 stride 2": nn.Conv2d(288, 288, 5, stride=2, padding=2, groups=288, bias=False),
        "stem 3x3 stride 2": nn.Conv2d(3, 40, 3, stride=2, padding=1, bias=False),
    }
    formats = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    for memory, search in itertools.product(formats, (False, True)):
        torch.backends.cudnn.benchmark, memory_format = search, formats[memory]
        for name, conv in kinds.items():
            layer = conv.to(device).to(memory_format=memory_format)  # type: ignore[call-overload]
            times = {}
            for images in (count, count - 1 - search, count - 1 - search):
                x = torch.randn(images, conv.in_channels, side, side, device=device)
                x = x.to(memory_format=memory_format).requires_grad_()
                times.setdefault(images, []).append(_seconds(lambda x=x, layer=layer: _pass(layer, x)))
            (first,), (new, again) = times.values()
            say(
                stage="shapes",
                conv=name,
                memory=memory,
                cudnn_benchmark=search,
                first_s=first,
                new_number_s=new,
                seen_number_s=again,
            )


def _pass(layer: nn.Module, x: Tensor) -> None:
    with torch.autocast(x.device.type, torch.bfloat16):
        y = layer(x)
    y.float().square().mean().backward()


# --- train ---


def train(toy: bool) -> None:
    """Plain windows and segments."""
    windows, segments, size = (2, 1, 2) if toy else (32, 8, 12)
    plain = {"num_segments": windows, "windows_per_segment": 1}
    shared = {"num_segments": segments, "windows_per_segment": size}
    cases = [("segments", shared, "ours"), ("segments", shared, "graph"), ("plain", plain, "ours")]
    cases += [("plain", plain, "graph"), ("segments", shared, "torch"), ("plain", plain, "torch")]
    for name, shape, kernels in cases:
        for line in _training(toy, shape, kernels):
            say(stage="train", case=name, kernels=kernels, windows=len_windows(shape), **line)
    if not toy:
        _bare_backbone(windows * 6)


def len_windows(shape: dict[str, int]) -> int:
    return shape["num_segments"] * shape["windows_per_segment"]


def _training(toy: bool, shape: dict[str, int], kernels: str) -> Iterator[dict[str, Any]]:
    _use_triton(kernels != "torch")
    model, made = _model(toy).train(), _planned(batch("small" if toy else "rt1", **shape))
    fused = next(model.parameters()).is_cuda
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, eps=1e-7, fused=fused, capturable=fused)
    step: Callable[[], object] = lambda: _step(model, optimizer, made)  # noqa: E731
    first = _seconds(step)
    yield {"first_s": first}
    if kernels == "graph" and fused:
        step = _graph(step)
    times = [_seconds(step) for _ in range(2 if toy else 12)][1:]
    peak = torch.cuda.max_memory_allocated() / 1e9 if fused else None
    yield {
        "step_s": statistics.median(times),
        "windows_per_s": len_windows(shape) / statistics.median(times),
        "gb": peak,
    }
    if fused:
        torch.cuda.reset_peak_memory_stats()


def _graph(run: Callable[[], object]) -> Callable[[], object]:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _planned(made: Batch) -> Batch:
    """With its images found on the host, and on the device."""
    real = int((made["frame_index"] >= 0).sum())
    return _moved(plan_images(made, crops=True, capacities=(len(made["frames"]), real)))


def _use_triton(wanted: bool) -> None:
    has = importlib.util.find_spec("triton") is not None
    norm_functions._has_triton = lambda: wanted and has  # type: ignore[assignment]


# --- parity ---


def parity(toy: bool) -> None:
    """Relative differences: of the loss, and of the gradients of all parameters together by their norms."""
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    made = batch("small" if toy else "rt1", num_segments=2, windows_per_segment=2 if toy else 6)
    for precision in ("as_is", "bf16"):
        sides = {}
        for name in ("torch", "ours", "ours, padded"):
            _use_triton(name != "torch")
            size = len(made["frames"]) + (3 if "padded" in name else 0)
            loaded = _moved(plan_images(made, crops=True, capacities=(size,)))
            model = _model(toy, precision).train()
            torch.manual_seed(0)
            loss = model.loss(loaded)
            loss.backward()
            gradient = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
            averages = torch.cat([b.flatten().double() for n, b in model.named_buffers() if "running" in n])
            sides[name] = (loss.double().detach().reshape(1), gradient, averages)
        for name in ("ours", "ours, padded"):
            far = [float((a - b).norm() / b.norm()) for a, b in zip(sides[name], sides["torch"], strict=True)]
            say(stage="parity", precision=precision, side=name, loss=far[0], gradient=far[1], averages=far[2])


def _step(model: RT1, optimizer: torch.optim.Optimizer, made: Batch) -> None:
    optimizer.zero_grad(set_to_none=True)
    model.loss(made).backward()
    optimizer.step()


def _bare_backbone(images: int) -> None:
    """torchvision's EfficientNet-B3 with its own head: what RT-1's image tokenizer stands on."""
    try:
        from torchvision.models import efficientnet_b3
    except ImportError as error:
        say(stage="train", case="torchvision", skipped=str(error))
        return
    net = efficientnet_b3().to(_device(), memory_format=torch.channels_last).train()
    x = torch.randn(images, 3, 300, 300, device=_device()).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), fused=torch.cuda.is_available())

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        _pass(net, x)
        optimizer.step()

    first = _seconds(step)
    times = [_seconds(step) for _ in range(8)]
    say(stage="train", case="torchvision", images=images, first_s=first, step_s=statistics.median(times))


# --- control ---


def control(toy: bool) -> None:
    """As a server acts: robots of one policy's weights, each with its history, in one pass (`act_together`)."""
    for kernels, robots in itertools.product((True, False), (1, 2) if toy else (1, 8, 32)):
        first = RT1Policy(_model(toy).eval(), cuda_graph=kernels)
        policies = [first.for_another_robot() for _ in range(robots)]
        seen = list(frames("small" if toy else "rt1", robots).numpy())
        words = list(torch.randn(robots, EMBEDDING_WIDTH))
        act = lambda policies=policies, seen=seen, words=words: act_together(policies, seen, words)  # noqa: E731
        measured = _latency(act, toy)
        rate = 1e3 * robots / measured["median_ms"]
        side = "graph" if kernels and torch.cuda.is_available() else "eager"
        say(stage="control", robots=robots, side=side, **measured, actions_per_s=rate)


def _latency(run: Callable[[], object], toy: bool) -> dict[str, float]:
    first = _seconds(run)
    times = sorted(_seconds(run) for _ in range(3 if toy else 60))
    return {
        "first_s": first,
        "median_ms": 1e3 * statistics.median(times),
        "p95_ms": 1e3 * times[int(0.95 * len(times))],
    }


# --- profile ---


def profile(toy: bool) -> None:
    """Device time of two plain training steps; kernels are told apart by their names."""
    model = _model(toy).train()
    made = _planned(batch("small" if toy else "rt1", num_segments=2 if toy else 32, windows_per_segment=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=torch.cuda.is_available())
    for _ in range(2):
        _step(model, optimizer, made)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    began = time.perf_counter()
    with torch.profiler.profile(activities=kinds) as measured:
        for _ in range(2):
            _step(model, optimizer, made)
        _synchronise()
    wall_ms = 1e3 * (time.perf_counter() - began) / 2
    spent: dict[str, float] = {}
    longest: dict[str, float] = {}
    for event in measured.key_averages():
        kernel = event.device_type != torch.profiler.DeviceType.CPU
        if kernel or not torch.cuda.is_available():
            ms = (event.self_device_time_total if kernel else event.self_cpu_time_total) / 2e3
            spent[_class(event.key)] = spent.get(_class(event.key), 0) + ms
            longest[event.key[:90]] = ms
    top = dict(sorted(longest.items(), key=lambda item: -item[1])[:14])
    say(stage="profile", wall_ms_with_profiler=wall_ms, busy_ms=sum(spent.values()), ms_by_class=spent, longest_ms=top)


CLASSES = {
    "depthwise": ("depthwise", "dgrad2d_grouped", "wgrad2d_grouped", "grouped_direct", "conv2d_grouped", "conv2d_c1"),
    "attention": ("flash", "fmha", "attention", "softmax"),
    "optimizer": ("multi_tensor", "fused_adam", "adam"),
    "batch norm": ("batch_norm", "bn_fw", "bn_bw", "batchnorm"),
    "matrix product, convolution": ("gemm", "cutlass", "xmma", "conv", "cudnn", "nvjet", "cublas", "wgrad", "dgrad"),
    "copy, cast, layout": ("memcpy", "memset", "copy", "cat", "nchw", "nhwc", "transpose"),
    "reduction": ("reduce",),
    "pointwise": ("elementwise", "vectorized", "triton_poi", "pointwise"),
    "gather, scatter": ("index", "gather", "scatter", "sort", "unique"),
}


def _class(kernel: str) -> str:
    name = kernel.lower()
    return next((label for label, parts in CLASSES.items() if any(part in name for part in parts)), "other")


# --- what the stages share ---


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _model(toy: bool, precision: str = "bf16") -> RT1:
    config = PRESETS["small" if toy else "rt1"]()
    torch.manual_seed(0)
    model = replace(config, compute=replace(config.compute, precision=precision)).build()  # type: ignore[arg-type]
    return model.to(_device()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _moved(made: Batch) -> Batch:
    return {key: value.to(_device()) for key, value in made.items()}


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _seconds(run: Callable[[], object]) -> float:
    _synchronise()
    began = time.perf_counter()
    run()
    _synchronise()
    return time.perf_counter() - began


STAGES: dict[str, Callable[[bool], None]] = {
    "train": train,
    "loop": lambda toy: loop(toy, say),
    "parity": parity,
    "control": control,
    "shapes": shapes,
    "profile": profile,
}


def _arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", nargs="+", choices=list(STAGES), default=list(STAGES), help="stages (default: all)")
    made.add_argument("--toy", action="store_true", help="small sizes, in seconds on a CPU")
    made.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return made.parse_args()


if __name__ == "__main__":
    main()
