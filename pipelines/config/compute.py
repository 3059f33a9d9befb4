"""Where a trained model computes and in what precision: `--device`, `--precision`. Imports torch only when asked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import torch
    from torch import nn

Precision = Literal["fp32", "tf32", "bf16"]
DEVICE, PRECISION, CUDA_GRAPH = "RTP_DEVICE", "RTP_PRECISION", "RTP_CUDA_GRAPH"
"""Environment variables: the first two say the same to a registered model, which a server of MLflow's loads."""


def wants_cuda_graph() -> bool:
    """Whether policies on a GPU may replay a CUDA graph: yes, unless RTP_CUDA_GRAPH is 0."""
    return os.environ.get(CUDA_GRAPH, "1") != "0"


@contextmanager
def num_threads(count: int | None) -> Iterator[None]:
    """Within the block torch computes with so many threads; None: with as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how a trained model computes."""

    device: str = "auto"
    """cpu; cuda, or cuda:N for the GPU of that number; auto: a GPU where torch can use one, else the CPU."""
    precision: Precision = "fp32"
    """Of matrix products and convolutions: fp32, which gives the same answers on a GPU as on a CPU, or on a GPU the
    faster tf32 or bf16."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"--device {self.device}: give auto, cpu, cuda or cuda:N, such as cuda:0")
        if self.precision not in get_args(Precision):
            raise ValueError(f"--precision {self.precision}: give fp32, tf32 or bf16")
        if self.precision == "tf32" and self.device == "cpu":
            raise ValueError("--precision tf32: a CPU does not compute in it; give fp32 or bf16, or a GPU")

    @staticmethod
    def of_environment() -> Compute:
        """What RTP_DEVICE and RTP_PRECISION say. Raises ValueError if they say something else."""
        device, precision = os.environ.get(DEVICE, "auto"), os.environ.get(PRECISION, "fp32")
        return Compute(device=device, precision=precision)  # type: ignore[arg-type]

    def environment(self) -> dict[str, str]:
        return {DEVICE: self.device, PRECISION: self.precision}

    def resolved(self) -> torch.device:
        """The device. Raises ValueError for a GPU that is not there, or that cannot compute in the precision."""
        import torch

        if self.device == "cpu" or (self.device == "auto" and not torch.cuda.is_available()):
            return torch.device("cpu")
        if not torch.cuda.is_available():
            why = "torch sees no GPU here" if torch.version.cuda else "this torch is built for the CPU alone"
            raise ValueError(f"--device {self.device}: {why}; give --device cpu, or auto")
        count, device = torch.cuda.device_count(), torch.device("cuda", int(self.device.partition(":")[2] or 0))
        if device.index >= count:
            there = "one GPU here, cuda:0" if count == 1 else f"{count} GPUs here, cuda:0 to cuda:{count - 1}"
            raise ValueError(f"--device {self.device}: there is {there}")
        if self.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ValueError(f"--precision bf16: {torch.cuda.get_device_name(device)} cannot compute in it; give tf32")
        return device

    @contextmanager
    def applied(self, device: torch.device) -> Iterator[None]:
        """Within the block, what runs on `device` runs in the precision."""
        import torch

        backends: Any = torch.backends  # which torch's own types do not know of
        before, on_gpu = backends.fp32_precision, device.type == "cuda"
        if on_gpu:
            backends.fp32_precision = "ieee" if self.precision == "fp32" else "tf32"
        # Triton launches its kernels on the process's current GPU, wherever their tensors lie.
        current = torch.cuda.device(device) if on_gpu else nullcontext()
        try:
            # No cache of cast weights: a CUDA graph captured in the block would read from it after its end.
            in_bf16 = self.precision == "bf16"
            cast = torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if in_bf16 else nullcontext()
            with current, cast:
                yield
        finally:
            if on_gpu:
                backends.fp32_precision = before

    @contextmanager
    def at_work(self, model: nn.Module) -> Iterator[torch.device]:
        """Within the block `model` lies on the device and computes in the precision; then it is back where it was."""
        device, weight = self.resolved(), next(model.parameters(), None)
        home = device if weight is None else weight.device
        try:
            model.to(device)
            with self.applied(device):
                yield device
        finally:
            model.to(home)
