"""The state of a rank's random number generators in a checkpoint: a resumed run has the same dropout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cluster.context import WorkerContext
from cluster.state_files import read_tensors


def random_state(context: WorkerContext) -> dict[str, dict[str, Tensor]]:
    """This rank's file by name: uint8 states under "cpu" and, on a GPU, "cuda"."""
    state = {"cpu": torch.get_rng_state()}
    if context.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(context.device)
    return {f"{_name(context)}.safetensors": state}


def restore_random_state(folder: Path, context: WorkerContext) -> None:
    """Continue from a checkpoint's folder. A new rank of a grown run has no file there and keeps its fresh state."""
    path, older = folder / f"{_name(context)}.safetensors", folder / f"{_name(context)}.pt"
    if path.exists():
        state = read_tensors(path)
    elif older.exists():  # checkpoints of version 0.1
        state = torch.load(older, weights_only=True)
    else:
        return
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and context.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], context.device)


def _name(context: WorkerContext) -> str:
    return f"random-{context.rank:05d}"
