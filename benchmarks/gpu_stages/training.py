"""Stages `train` and `sides`: optimizer steps of the preset rt1 (forward, backward, fused Adam; bf16 autocast) on a
batch that lies on the device, plain windows and segments, and what RT-1's image tokenizer stands on alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from gpu_stages import rt1_step
from gpu_stages.rt1_step import Shape, adam, built, planned, recorded, train_step
from gpu_stages.settings import Line, Settings
from gpu_stages.timing import Step, device, free_memory, median_seconds, on_gpu, peak_gb, seconds
from torch import Tensor, nn
from workload import PRESETS, batch

from rt_models.blocks.triton_kernels import run_kernels

CUDNN = "ours, depthwise by cuDNN"


def train(settings: Settings) -> Iterator[Line]:
    """Our Triton kernels, kernel by kernel and as one CUDA graph; then torchvision's EfficientNet-B3 alone."""
    for case, shape in rt1_step.shapes(settings).items():
        for kernels in ("ours", CUDNN):
            try:
                for line in trained(settings, shape, kernels=kernels, graph=True):
                    yield {"case": case, **line}
                break
            except Exception as error:  # such as Triton's: then cuDNN's depthwise convolutions
                yield {"case": case, "side": kernels, "failed": " ".join(str(error).split())[:200]}
            finally:
                free_memory()
    yield from torchvision_alone(settings)


def sides(settings: Settings) -> Iterator[Line]:
    """cuDNN's depthwise convolutions between our kernels, torch's own kernels, what torch.compile makes of them; our
    backbone without FiLM."""
    cases = list(rt1_step.shapes(settings).items())
    for kernels in (CUDNN, "torch", "compiled"):
        for case, shape in cases[:1] if settings.toy else cases:
            for line in trained(settings, shape, kernels=kernels, graph=kernels == CUDNN):
                yield {"case": case, **line}
            torch._dynamo.reset()
            free_memory()
    yield from backbone_alone(settings)


def trained(settings: Settings, shape: Shape, *, kernels: str, graph: bool = False) -> Iterator[Line]:
    """`kernels`: ours, CUDNN, torch or compiled."""
    config, compute = PRESETS[rt1_step.preset(settings)](), {"depthwise": "cudnn" if kernels == CUDNN else "auto"}
    if kernels == "compiled" and settings.toy:  # two blocks: each takes seconds to compile
        backbone, transformer = replace(config.backbone, stages=config.backbone.stages[:1]), config.transformer
        config = replace(config, backbone=backbone, transformer=replace(transformer, num_layers=1))
    if kernels == "compiled":
        compute["compile"] = "aot_eager" if settings.toy else "inductor"
    model = built(config, precision="bf16", **compute).train()
    made, optimizer = planned(batch(rt1_step.preset(settings), **shape)), adam(model)

    def step() -> None:
        with run_kernels("off" if kernels == "torch" else "auto", device="cuda"):
            train_step(model, optimizer, made)

    about = {"windows": rt1_step.num_windows(shape), "images": len(made["image_frame"])}
    yield {"side": kernels, **about, "first_s": seconds(step)}
    yield {"side": kernels, **about, **_rates(settings, step, about["windows"])}
    if graph:
        replay = recorded(step)
        side = "graph" if kernels == "ours" else f"{kernels}, graph"
        yield {"side": side, **about, **_rates(settings, replay, about["windows"])}


def _rates(settings: Settings, step: Step, windows: int) -> Line:
    step_s = median_seconds(step, 2 if settings.toy else 12)
    return {"step_s": step_s, "windows_per_s": windows / step_s, "gb": peak_gb()}


def torchvision_alone(settings: Settings) -> Iterator[Line]:
    """With its own head, on as many images as 32 plain windows have."""
    try:
        from torchvision.models import efficientnet_b3
    except (ImportError, RuntimeError) as error:
        yield {"case": "backbone", "side": "torchvision", "skipped": str(error)}
        return
    net = efficientnet_b3().to(device(), memory_format=torch.channels_last).train()
    yield from _alone(settings, "torchvision", net, net)


def backbone_alone(settings: Settings) -> Iterator[Line]:
    """Ours: the same blocks without FiLM, no head."""
    config = PRESETS[rt1_step.preset(settings)]()
    net = config.backbone.build(in_channels=3, image_size=config.input.image_size, embedding_width=0)
    net = net.to(device()).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    yield from _alone(settings, "ours", net, lambda x: net(x, x.new_zeros(len(x), 0)))


def _alone(settings: Settings, side: str, net: nn.Module, run: object) -> Iterator[Line]:
    images, size = (2, 64) if settings.toy else (192, 300)
    x = torch.randn(images, 3, size, size, device=device()).to(memory_format=torch.channels_last)
    optimizer = adam(net)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        forward_backward(run, x)
        optimizer.step()

    about = {"case": "backbone", "side": side, "images": images}
    yield {**about, "first_s": seconds(step)}
    yield {**about, "step_s": median_seconds(step, 2 if settings.toy else 8), "gb": peak_gb()}
    if on_gpu():
        yield {**about, "side": f"{side}, graph", "step_s": median_seconds(recorded(step), 8)}


def forward_backward(run: object, x: Tensor) -> None:
    """Of any network, in bf16, from a loss of its own."""
    with torch.autocast(x.device.type, torch.bfloat16):
        y = run(x)  # type: ignore[operator]
    y.float().square().mean().backward()
