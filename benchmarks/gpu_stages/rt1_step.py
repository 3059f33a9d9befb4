"""RT-1 on the device, a batch whose images were planned on the host, and its training step in several ways."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from gpu_stages.settings import Settings
from gpu_stages.timing import Step, device, on_gpu
from torch import nn
from workload import PRESETS, Batch

from cluster.graph_replay import CudaRecorder
from rt_models.rt1 import RT1, RT1Config
from rt_models.vision.image_plan import plan_images

Shape = dict[str, int]


def preset(settings: Settings) -> str:
    return "tiny" if settings.toy else "rt1"


def shapes(settings: Settings) -> dict[str, Shape]:
    """96 windows in segments of 12, and 32 plain windows."""
    windows, segments, size = (2, 1, 2) if settings.toy else (32, 8, 12)
    return {
        "segments": {"num_segments": segments, "windows_per_segment": size},
        "plain": {"num_segments": windows, "windows_per_segment": 1},
    }


def num_windows(shape: Shape) -> int:
    return shape["num_segments"] * shape["windows_per_segment"]


def rt1(settings: Settings, **compute: Any) -> RT1:
    """In bf16 unless `compute`, settings of `RT1Config.compute`, says something else."""
    return built(PRESETS[preset(settings)](), **{"precision": "bf16", **compute})


def built(config: RT1Config, **compute: Any) -> RT1:
    torch.manual_seed(0)
    model = replace(config, compute=replace(config.compute, **compute)).build()
    return model.to(device()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def planned(made: Batch, padding: int = 0) -> Batch:
    """With its images found on the host, so many more to pad them, and on the device."""
    return moved(plan_images(made, crops=True, capacities=(len(made["frames"]) + padding,)))


def moved(made: Batch) -> Batch:
    return {key: value.to(device()) for key, value in made.items()}


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """One kernel for all parameters, which a CUDA graph may hold."""
    return torch.optim.Adam(model.parameters(), lr=1e-4, eps=1e-7, fused=on_gpu(), capturable=on_gpu())


def train_step(model: RT1, optimizer: torch.optim.Optimizer, made: Batch) -> None:
    optimizer.zero_grad(set_to_none=True)
    model.loss(made).backward()
    optimizer.step()


def recorded(run: Step, recorder: CudaRecorder | None = None) -> Step:
    """The same as one CUDA graph, whose memory is its own or that of the `recorder`'s others; on a CPU as it is."""
    if not on_gpu():
        return run
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    _, replay = (recorder or CudaRecorder())(run)
    return replay
