"""A trained model without its weights, and reading them into it where it lies.

The weights pass through the host's memory one tensor at a time, and not at all on their way from a file of safetensors
to a GPU: a model of three billion parameters is 12 GB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from pipelines.families.models import Model, ModelConfig
from rt_models.blocks.initial_values import weights_follow


def without_weights(config: ModelConfig, device: torch.device | None) -> Model:
    """In evaluation mode, on `device`, by default the CPU. All its weights must be read."""
    with weights_follow(), nullcontext() if device is None or device.type == "cpu" else device:
        model = config.build()
    return model.eval() if device is None else model.eval().to(device)  # what was made from NumPy is still on the CPU


def each_tensor(path: Path, device: torch.device | None) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, read straight onto `device`. Raises SafetensorError or OSError if it cannot be read."""
    with safe_open(path, "pt", device=str(device or "cpu")) as file:
        for name in file.keys():  # noqa: SIM118 (not a dictionary)
            yield name, file.get_tensor(name)


def is_finite(value: Tensor) -> bool:
    """Whether it holds neither NaN nor infinity. By its extremes: `isfinite` takes twenty times as long on a CPU, and
    its copies of an embedding are large."""
    if not value.is_floating_point() or not value.numel():
        return True
    return all(bool(extreme.isfinite()) for extreme in value.aminmax())


def fill(model: Model, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Overwrite parameters and buffers of the model. Raises KeyError unless names and shapes are the model's own, and
    ValueError for numbers that it cannot act with."""
    own = model.state_dict()
    missing = set(own)
    for name, value in weights:
        if name not in own or own[name].shape != value.shape:
            raise KeyError(name)
        if own[name].is_floating_point() != value.is_floating_point():
            raise ValueError(f"{name} is {value.dtype}, the model's is {own[name].dtype}: export it again")
        if not is_finite(value):
            raise ValueError(f"{name} holds NaN or infinity: it has diverged or is damaged, give an earlier checkpoint")
        own[name].copy_(value)
        missing.discard(name)
        del value  # before the next is read
    if missing:
        raise KeyError(min(missing))
