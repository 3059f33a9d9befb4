"""Stage `port`: training steps of Rohan138/rt1-pytorch, as published and under the same autocast as ours.

As published: float32 with torch's defaults, its own `RT1Policy.loss` on NumPy observations of 256x320 pixels, and its
Adam. The same 32 plain windows as ours, or as many as the memory holds. Set up as benchmarks/README.md says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from gpu_stages.settings import Line, Settings, Skipped
from gpu_stages.timing import device, free_memory, median_seconds, peak_gb, seconds


def port(settings: Settings) -> Iterator[Line]:
    """Forward, backward and Adam."""
    if settings.rt1_pytorch is None:
        raise Skipped("--rt1-pytorch CHECKOUT (and --packages FOLDER of what it imports): see benchmarks/README.md")
    sizes = (1,) if settings.toy else (32, 16, 8)
    for case in ("as published", "autocast"):
        for windows in sizes:
            try:
                yield {"case": case, "windows": windows, **_trained(settings, case, windows)}
                break
            except torch.cuda.OutOfMemoryError:
                yield {"case": case, "windows": windows, "out_of_memory": True}
            finally:
                free_memory()


def _trained(settings: Settings, case: str, windows: int) -> Line:
    from ports import rt1_pytorch

    assert settings.rt1_pytorch is not None
    theirs = rt1_pytorch(settings.rt1_pytorch, windows, device=device().type)
    theirs.model.train()
    optimizer = torch.optim.Adam(theirs.model.parameters(), lr=1e-4)
    in_bf16 = case == "autocast"

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device().type, torch.bfloat16) if in_bf16 else nullcontext():
            loss = theirs.loss()
        loss.backward()
        optimizer.step()

    first = seconds(step)
    step_s = median_seconds(step, 1 if settings.toy else 8)
    return {"first_s": first, "step_s": step_s, "windows_per_s": windows / step_s, "gb": peak_gb()}
