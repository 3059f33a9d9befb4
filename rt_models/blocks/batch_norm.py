"""Batch normalisation whose statistics are an explicit choice, with flax's running averages.

- "frozen": the stored averages, in training too. For pretrained backbones; from scratch the signal dies.
- "per_rank": the statistics of the rank's own frames, as torch's data parallelism does silently. The result then
  depends on the number of ranks, and the stored averages are those of rank 0.
- "synchronised": the statistics of all ranks' frames, as in the official JAX code. Exact for any number of ranks, also
  with unequal numbers of frames. torch's SyncBatchNorm refuses CPU tensors; this one runs on any backend.

The running variance is the biased one, as in flax (torch keeps the unbiased one: another number in small batches).

Axes: N frames, C channels, HW pixels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from rt_models.config_checks import require_choices, require_share


@dataclass(frozen=True, kw_only=True)
class BatchNormConfig:
    """Where the statistics come from, and how fast the running averages follow."""

    statistics: Literal["frozen", "per_rank", "synchronised"] = "synchronised"
    """Frames that a training step normalises by: none (stored averages), this worker's, or all workers'."""
    momentum: float = 0.99
    """Share of the old value kept in the running averages (flax's sense; torch's is 1 minus this)."""
    eps: float = 1e-3
    """Added to the variance before its root is taken."""

    def __post_init__(self) -> None:
        require_choices(self, "batch_norm.")
        require_share(self, "momentum", "batch_norm.")
        if not self.eps > 0:
            raise ValueError(f"batch_norm.eps must be above 0, got {self.eps}")

    def build(self, num_channels: int) -> BatchNorm:
        return BatchNorm(self, num_channels)


class BatchNorm(nn.Module):
    """float (N, C, H, W) -> the same shape."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, config: BatchNormConfig, num_channels: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        # By way of NumPy: ZeRO-3 turns what torch's own constructors make inside it into its parameters' precision.
        self.register_buffer("running_mean", torch.from_numpy(np.zeros(num_channels, np.float32)))
        self.register_buffer("running_var", torch.from_numpy(np.ones(num_channels, np.float32)))
        self.updates_averages = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BatchNorm:
        # In bf16 the averages would stand still: one hundredth of a change is below its eighth bit.
        before = {"running_mean": self.running_mean, "running_var": self.running_var}
        super()._apply(fn, recurse)
        for name, average in before.items():
            moved = getattr(self, name)
            if moved.dtype in (torch.bfloat16, torch.float16):
                setattr(self, name, average.to(moved.device))
        return self

    def forward(self, x_NCHW: Tensor, num_real: Tensor | None = None) -> Tensor:
        """The first `num_real` images, an integer tensor (1,), count in the statistics; None: all do.

        The others pad the batch: no gradient reaches them, and what comes out for them means nothing.
        """
        if not self.training or self.config.statistics == "frozen":
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x_NCHW, mean, var, *self._affine(), False, 0.0, self.config.eps)
        if num_real is None and not self.is_synchronised():
            y_NCHW, *found = self._local(x_NCHW)
        else:
            y_NCHW, *found = self._counted(x_NCHW, num_real)
        self.follow(*found)
        return y_NCHW

    def is_synchronised(self) -> bool:
        """Whether the statistics are those of several ranks."""
        return self.config.statistics == "synchronised" and dist.is_initialized() and dist.get_world_size() > 1

    def follow(self, mean: Tensor, var: Tensor, count: Tensor | None = None) -> None:
        """Move the running averages towards the statistics of a batch.

        Not where `count` (1,) is 0, nor where they are not finite: such an update is left out, and the averages would
        never be numbers again.
        """
        if not self.updates_averages:
            return
        with torch.no_grad():
            share: float | Tensor = 1 - self.config.momentum
            if count is not None:
                share = share * (count > 0).to(self.running_mean.dtype)
            pairs = ((self.running_mean, mean), (self.running_var, var))
            if _surely_finite(mean, var):
                for average, found in pairs:
                    average.lerp_(found.to(average.dtype), share)
                return
            is_finite = mean.isfinite() & var.isfinite()
            for average, found in pairs:
                average.lerp_(torch.where(is_finite, found.to(average.dtype), average), share)

    def freeze(self) -> None:
        """From now on the stored averages, in training too, which no longer move."""
        self.config = replace(self.config, statistics="frozen")

    def _affine(self) -> tuple[Tensor, Tensor]:
        return self.weight.to(self.running_mean.dtype), self.bias.to(self.running_mean.dtype)

    def _local(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(output, mean, biased variance) by torch's fused kernel, which reports the variance unbiased."""
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        y_NCHW = F.batch_norm(x_NCHW, mean, var, *self._affine(), True, 1.0, self.config.eps)
        count = x_NCHW.numel() // x_NCHW.shape[1]
        return y_NCHW, mean, var * ((count - 1) / count)

    def _counted(self, x_NCHW: Tensor, num_real: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        arguments = (x_NCHW, self.weight, self.bias, num_real, self.config.eps, self.is_synchronised())
        if torch.compiler.is_compiling() and not self.is_synchronised():
            return _normalised(*arguments)[:4]  # what torch.compile fuses it differentiates itself
        return _CountedNorm.apply(*arguments)  # type: ignore[return-value]


class _CountedNorm(torch.autograd.Function):
    """Normalisation by the statistics of the real images, of this rank or of all ranks.

    Its gradient is that of the sum of the ranks' losses.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, num_real: Tensor | None, eps: float, synchronised: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, mean, var, seen, *kept = _normalised(x, weight, bias, num_real, eps, synchronised)
        ctx.save_for_backward(x, weight, mean, *kept)
        ctx.synchronised = synchronised
        ctx.mark_non_differentiable(mean, var, seen)
        return y, mean, var, seen

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        x, weight, mean, scale, count, is_real = ctx.saved_tensors
        dy = gradients[0].to(mean.dtype)
        normal = (x.to(mean.dtype) - mean[:, None, None]) * scale[:, None, None]
        sums = torch.stack([dy.sum((0, 2, 3)), (dy * normal).sum((0, 2, 3))])
        dbias, dweight = sums.clone()
        if ctx.synchronised:
            dist.all_reduce(sums)
        mean_dy, mean_dyn = sums / count
        dx = (dy - mean_dy[:, None, None] - normal * mean_dyn[:, None, None]) * (scale * weight)[:, None, None]
        dx = dx if is_real is None else dx * is_real
        return dx.to(x.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype), None, None, None


def _normalised(
    x: Tensor, weight: Tensor, bias: Tensor, num_real: Tensor | None, eps: float, synchronised: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """(output, mean, variance, numbers seen; and for the gradient: scale, count, is_real)."""
    wide = x if x.dtype == torch.float64 else x.float()
    is_real = _is_real(wide, num_real)
    counted = wide if is_real is None else wide * is_real
    count = wide.new_full((1,), len(x)) if num_real is None else num_real.to(wide.dtype).reshape(1)
    total = torch.cat([counted.sum((0, 2, 3)), count * (x.shape[2] * x.shape[3])])
    if synchronised:
        dist.all_reduce(total)
    seen = total[-1:]
    count = seen.clamp(min=1)  # a batch may have no picture of a camera, on all ranks
    mean = total[:-1] / count
    # A second round for the squares: E[x^2] - E[x]^2 in one round cancels where the mean is large.
    centred = wide - mean[:, None, None]
    square = (centred if is_real is None else centred * is_real).square().sum((0, 2, 3))
    if synchronised:
        dist.all_reduce(square)
    var = square / count
    scale = torch.rsqrt(var + eps)
    y = centred * (scale * weight)[:, None, None] + bias[:, None, None]
    return y.to(x.dtype), mean, var, seen, scale, count, is_real


def _surely_finite(mean_C: Tensor, var_C: Tensor) -> bool:
    """Whether all are known to be finite, by one product on a CPU, which costs less than a test of each channel.

    False where the product overflows, or reading it would wait for a device or break a trace of torch.compile.
    """
    if mean_C.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return math.isfinite(torch.dot(mean_C, var_C))


def _is_real(x_NCHW: Tensor, num_real: Tensor | None) -> Tensor | None:
    """(N, 1, 1, 1), 1 for a real image and 0 for padding, of the same dtype; None: all are real."""
    if num_real is None:
        return None
    return (torch.arange(len(x_NCHW), device=x_NCHW.device) < num_real).to(x_NCHW.dtype)[:, None, None, None]


@contextlib.contextmanager
def averages_untouched(module: nn.Module) -> Iterator[None]:
    """Running averages stay as they are: recomputing a checkpointed block would otherwise count its frames twice."""
    norms = [part for part in module.modules() if isinstance(part, BatchNorm)]
    for norm in norms:
        norm.updates_averages = False
    try:
        yield
    finally:
        for norm in norms:
            norm.updates_averages = True
