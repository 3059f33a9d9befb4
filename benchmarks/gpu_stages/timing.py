"""The device, and seconds between two moments at which it has nothing left to do."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

import torch

Step = Callable[[], object]


def on_gpu() -> bool:
    return torch.cuda.is_available()


def device() -> torch.device:
    return torch.device("cuda" if on_gpu() else "cpu")


def device_name() -> str:
    return torch.cuda.get_device_name() if on_gpu() else "cpu"


def synchronise() -> None:
    if on_gpu():
        torch.cuda.synchronize()


def seconds(run: Step) -> float:
    synchronise()
    began = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - began


def median_seconds(step: Step, rounds: int) -> float:
    """Of so many steps, one more before them."""
    return statistics.median([seconds(step) for _ in range(rounds + 1)][1:])


def peak_gb() -> float | None:
    """The most that tensors have taken of the GPU since `free_memory`."""
    return torch.cuda.max_memory_allocated() / 1e9 if on_gpu() else None


def free_memory() -> None:
    """Give back what nobody refers to any more, and count the peak anew."""
    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
