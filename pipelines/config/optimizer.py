"""Optimizers as config classes. Norms and biases are never decayed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """Adam as the released RT-1 uses it: constant 1e-4, Keras' epsilon.

    Source: google-research/robotics_transformer 4569641b, `sequence_agent.py`; google-deepmind/open_x_embodiment
    9eeb68b9, `colabs/Minimal_Training_Example.ipynb`, cell 28.
    """

    lr: float = 1e-4
    """Learning rate at the schedule's peak."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay per update of the running means of the gradient and of its square."""
    eps: float = 1e-7
    """Added to the root of the mean square before dividing by it."""

    def __post_init__(self) -> None:
        _require_usable(self.lr, self.betas, self.eps)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trained, lr=self.lr, betas=self.betas, eps=self.eps, fused=_fused(trained))


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW with decoupled weight decay on matrices and convolution kernels only."""

    lr: float = 1e-4
    """Learning rate at the schedule's peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay per update of the running means of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the root of the mean square before dividing by it."""
    weight_decay: float = 0.01
    """Decay of a weight per update, as a share of it, times the learning rate."""

    def __post_init__(self) -> None:
        _require_usable(self.lr, self.betas, self.eps, self.weight_decay)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if _axes(p) >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if _axes(p) < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=_fused(trained))


def _require_usable(lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0) -> None:
    sizes = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
    for name, value in sizes.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"optimizer.{name} must be finite and at least 0, got {value}")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"optimizer.betas must be at least 0 and below 1, got {betas[0]} and {betas[1]}")


def _fused(parameters: Sequence[nn.Parameter]) -> bool | None:
    """One kernel for many parameters where they lie on a GPU; None leaves it to torch, as on a CPU."""
    return True if parameters and all(parameter.is_cuda for parameter in parameters) else None


def _axes(parameter: nn.Parameter) -> int:
    """Of the whole parameter: one that was created sharded (ZeRO-3) is a vector here and has its shape beside it."""
    return len(getattr(parameter, "ds_shape", parameter.shape))
