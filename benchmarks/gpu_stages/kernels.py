"""Stages `shapes`, `parity` and `profile`: what new shapes cost, what our kernels change, where device time goes."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from gpu_stages import rt1_step
from gpu_stages.rt1_step import adam, planned, recorded, rt1, train_step
from gpu_stages.settings import Line, Settings
from gpu_stages.timing import Step, device, on_gpu, seconds, synchronise
from gpu_stages.training import forward_backward
from torch import Tensor, nn
from workload import batch

from rt_models.blocks.triton_kernels import run_kernels


def shapes(settings: Settings) -> Iterator[Line]:
    """Forward and backward of one convolution of each class of B3, for a number of images seen before and for a new
    one, by memory format and by cuDNN's choice of algorithm: which of them pay for every new number."""
    side, count = (8, 3) if settings.toy else (38, 64)
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
            layer = conv.to(device()).to(memory_format=memory_format)  # type: ignore[call-overload]
            times: dict[int, list[float]] = {}
            for images in (count, count - 1 - search, count - 1 - search):
                x = torch.randn(images, conv.in_channels, side, side, device=device())
                x = x.to(memory_format=memory_format).requires_grad_()
                taken = seconds(lambda x=x, layer=layer: forward_backward(layer, x))
                times.setdefault(images, []).append(taken)
            (first,), (new, again) = times.values()
            about = {"conv": name, "memory": memory, "cudnn_benchmark": search}
            yield {**about, "first_s": first, "new_number_s": new, "seen_number_s": again}


# --- parity ---


def parity(settings: Settings) -> Iterator[Line]:
    """Relative differences of our kernels from torch's, in float32 without TF32 and under bf16, and of a batch padded
    with images from the same batch alone: of the loss, of all gradients and of all running averages by their norms."""
    torch.backends.fp32_precision = "ieee"
    windows = 2 if settings.toy else 6
    made = batch(rt1_step.preset(settings), num_segments=2, windows_per_segment=windows)
    for precision in ("as_is", "bf16"):
        found = {}
        for name in ("torch", "ours", "ours, padded"):
            model = rt1(settings, precision=precision).train()
            torch.manual_seed(0)
            with run_kernels("off" if name == "torch" else "auto", device="cuda"):
                loss = model.loss(planned(made, padding=3 if "padded" in name else 0))
                loss.backward()
            gradient = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
            averages = torch.cat([b.flatten().double() for n, b in model.named_buffers() if "running" in n])
            found[name] = (loss.double().detach().reshape(1), gradient, averages)
        for name in ("ours", "ours, padded"):
            loss, gradient, averages = map(_distance, found[name], found["torch"])
            yield {"precision": precision, "side": name, "loss": loss, "gradient": gradient, "averages": averages}


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# --- profile ---


def profile(settings: Settings) -> Iterator[Line]:
    """Device time of a training step on plain windows, kernel by kernel and as a graph; kernels are told apart by their
    names. Idle: wall time in which no kernel ran; the profiler itself makes the host slower."""
    model = rt1(settings).train()
    made = planned(batch(rt1_step.preset(settings), **rt1_step.shapes(settings)["plain"]))
    optimizer = adam(model)

    def step() -> None:
        train_step(model, optimizer, made)

    for _ in range(2):
        step()
    yield {"side": "ours", **_profiled(step)}
    if on_gpu():
        yield {"side": "graph", **_profiled(recorded(step))}


def _profiled(step: Step, steps: int = 2) -> Line:
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if on_gpu() else []
    synchronise()
    began = time.perf_counter()
    with torch.profiler.profile(activities=kinds) as measured:
        for _ in range(steps):
            step()
        synchronise()
        wall_ms = 1e3 * (time.perf_counter() - began) / steps
    spent: dict[str, float] = {}
    longest: dict[str, float] = {}
    for event in measured.key_averages():
        kernel = event.device_type != torch.profiler.DeviceType.CPU
        if kernel or not on_gpu():
            ms = (event.self_device_time_total if kernel else event.self_cpu_time_total) / 1e3 / steps
            spent[kernel_class(event.key)] = spent.get(kernel_class(event.key), 0) + ms
            longest[event.key[:90]] = ms
    busy_ms = sum(spent.values())
    spent["idle"] = max(0.0, wall_ms - busy_ms)
    top = dict(sorted(longest.items(), key=lambda item: -item[1])[:14])
    return {"wall_ms_with_profiler": wall_ms, "busy_ms": busy_ms, "ms_by_class": spent, "longest_ms": top}


OUR_KERNELS = {
    name
    for file in (Path(__file__).resolve().parents[2] / "rt_models").glob("*/*_kernels.py")
    for name in re.findall(r"@triton\.jit(?:\([^)]*\))?\ndef (\w+)\(", file.read_text())
}
CLASSES = {
    "depthwise": ("depthwise", "dgrad2d_grouped", "wgrad2d_grouped", "grouped_direct", "conv2d_grouped", "conv2d_c1"),
    "attention": ("flash", "fmha", "attention", "softmax"),
    "optimizer": ("multi_tensor", "fused_adam", "adam"),
    "batch norm": ("batch_norm", "bn_fw", "bn_bw", "batchnorm"),
    "copy, cast, layout": ("memcpy", "memset", "copy", "catarray", "nchwtonhwc", "nhwctonchw", "transpose"),
    "matrix product, convolution": ("gemm", "cutlass", "xmma", "conv", "cudnn", "nvjet", "cublas", "wgrad", "dgrad"),
    "reduction": ("reduce",),
    "pointwise": ("elementwise", "vectorized", "triton_poi", "pointwise"),
    "gather, scatter": ("index", "gather", "scatter", "sort", "unique"),
}


def kernel_class(kernel: str) -> str:
    name = kernel.lower()
    if kernel in OUR_KERNELS and "depthwise" not in name:
        return "our kernels"
    return next((label for label, parts in CLASSES.items() if any(part in name for part in parts)), "other")
