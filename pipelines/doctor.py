"""`rtp doctor`: what this machine has, and what will work on it. Changes nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from typing import Any

import torch

from pipelines.arguments import UsageError
from pipelines.tracking import tracking_uri

_PARTS = ("torch", "ray", "deepspeed", "tensorflow-datasets", "pyarrow", "mlflow", "s3fs", "simplejpeg")
_EXTRAS = {"use": "tensorflow", "sim": "metaworld", "vlm": "transformers"}


def diagnose() -> dict[str, Any]:
    """What was found, as plain data."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PARTS},
        "extras": {extra: importlib.util.find_spec(module) is not None for extra, module in _EXTRAS.items()},
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "shared_memory_gb": round(shutil.disk_usage("/dev/shm").total / 1e9, 1) if os.path.isdir("/dev/shm") else 0.0,
        "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        "gpus": gpus,
        "tracking_uri": tracking_uri(),
        "ray_auth_mode": os.environ.get("RAY_AUTH_MODE", "not set"),
    }


def main(arguments: list[str]) -> dict[str, Any]:
    """Print the findings and what follows from them."""
    if arguments:
        raise UsageError(f"rtp doctor takes no arguments, got {arguments[0]!r}")
    found = diagnose()
    missing = [name for name, version in found["versions"].items() if version is None]
    for name, value in found.items():
        print(f"{name:>16}: {value}")
    for name in missing:
        print(f"missing: {name}; install the project again with its constraints.txt")
    for extra, present in found["extras"].items():
        if not present:
            print(f"not installed: extra {extra!r} (pip install 'rt-pipelines[{extra}]')")
    if not found["gpus"]:
        print("no GPU: training runs on the CPU, for the small recipes only")
    return found | {"exit_code": 1 if missing else 0}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
