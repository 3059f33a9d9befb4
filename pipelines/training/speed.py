"""How well a training uses its machine: samples and frames per second, waiting for data, FLOPs utilisation, memory.

Model FLOPs utilisation is what the model needs by count, forward and backward and nothing computed twice, over what the
devices could do at their peak. A known GPU's peak is its data sheet's for dense bf16; any other peak is measured once,
with a matrix product in the training's precision.
"""

from __future__ import annotations

import resource
import time

import psutil
import torch

INPUT_BOUND = 0.1  # share of the time spent waiting for data, beyond which the loader is the bottleneck
_SIZE, _ROUNDS = 1024, 5
_TERAFLOPS = {  # dense bf16, data sheets; the first name found in the device's name is used
    "B200": 2250.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "H800": 989.0,
    "GH200": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "A10G": 70.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A6000": 155.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}


def peak_flops(device: torch.device, precision: str) -> float:
    """Floating-point operations per second that one device could do."""
    if device.type == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name(device)
        for part, teraflops in _TERAFLOPS.items():
            if part in name:
                return teraflops * 1e12
    return _measured(device, torch.bfloat16 if precision == "bf16" else torch.float32)


def _measured(device: torch.device, dtype: torch.dtype) -> float:
    """The best of some rounds; on CPU with the threads and neighbours that the training has."""
    size = _SIZE if device.type == "cpu" else 8 * _SIZE
    a = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    if device.type == "cuda":  # the training's own memory is what is asked for later
        del a
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return 2 * size**3 / min(seconds)


def verdict(waiting_share: float) -> str:
    """Whether loading or computing limits the speed."""
    return "input-bound" if waiting_share > INPUT_BOUND else "compute-bound"


def memory_gb(device: torch.device) -> float:
    """The most this process has held so far: of the GPU's memory, or where there is none, of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def system_metrics(folder: str) -> dict[str, float]:
    """The machine that this process runs on, under the names by which MLflow groups system metrics."""
    memory = psutil.virtual_memory()
    metrics = {
        "system/cpu_percent": psutil.cpu_percent(),
        "system/memory_used_gb": (memory.total - memory.available) / 1e9,
        "system/memory_percent": memory.percent,
    }
    if "://" not in folder:
        metrics["system/disk_free_gb"] = psutil.disk_usage(folder).free / 1e9
    if torch.cuda.is_initialized():  # of this rank's GPU alone: asking another would open a context of 0.5 GB on it
        free, total = torch.cuda.mem_get_info()
        metrics[f"system/gpu_{torch.cuda.current_device()}_memory_used_gb"] = (total - free) / 1e9
    return metrics
