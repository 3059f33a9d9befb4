"""Sums over the steps between two lines of metrics, on one rank and then over all.

Axes: B samples of a micro-batch, S stores.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.context import WorkerContext
from pipelines.config.experiment import Experiment
from pipelines.config.serialization import did_you_mean
from pipelines.families.models import family_of
from pipelines.training.speed import memory_gb, peak_flops
from preprocessing.loading.reader import Batch

# What a training reports by step, here and in the loop; of a mixture also each store's.
REPORTED = (
    *("loss", "validation_loss", "gradient_norm", "learning_rate", "skipped_steps"),
    *("samples_per_s", "frames_per_s", "waiting_share", "memory_gb", "padding_share", "flops_utilisation"),
    "image_padding_share",
)
_OF_A_STORE = ("loss/", "samples/", "tokens/")
_SAMPLES, _TOKENS, _LOSS = 0, 1, 2  # columns of the sums by store


def require_reported(metric: str, where: str) -> None:
    """Raise ValueError if no training reports such a metric."""
    if metric not in REPORTED and not metric.startswith(_OF_A_STORE):
        raise ValueError(f"{where}: a training reports no {metric!r}{did_you_mean(metric, list(REPORTED))}")


@dataclass(frozen=True, kw_only=True)
class _RankMetrics:
    """Of one rank, for the others: see `StepMetrics.metrics`."""

    loss: float
    """NaN where every step was skipped."""
    waiting: float
    utilisation: float
    memory_gb: float
    samples_per_s: float
    frames_per_s: float
    padding: float | None
    image_padding: float | None
    stores: list[list[float]]


class StepMetrics:
    """Call `add` for every micro-batch, then `metrics`, on every rank; `metrics` also resets the sums."""

    def __init__(self, experiment: Experiment, context: WorkerContext, store_names: Sequence[str]) -> None:
        self._context, self._names = context, store_names
        with torch.random.fork_rng(devices=[]):  # the run's random numbers stay as they were
            self._cost = family_of(experiment.model).batch_cost(experiment.model)
        self._peak = peak_flops(context.device, experiment.engine.precision)
        self._restart(0.0)

    def _restart(self, waited_s: float) -> None:
        self._began, self._waited_s = time.perf_counter(), waited_s
        self._losses: list[Tensor] = []
        self._samples = self._frames = self._token_places = self._tokens = 0
        self._images = self._image_places = 0  # of batches of fixed shapes
        self._flops = 0.0
        self._by_store_S3 = torch.zeros(len(self._names), 3, dtype=torch.float64, device=self._context.device)

    def count(self, batch: Batch) -> None:
        """A micro-batch on the host, on its way to the device."""
        counts = [int(batch[key]) for key in batch if key.startswith("num_images")]  # one for each image tokenizer
        if counts:
            frames = sum(counts)
            self._images += frames
            planned = [key for key in batch if key.startswith("image_frame")]
            places = planned or [key for key in batch if key.startswith("frames")]
            self._image_places += sum(len(batch[key]) for key in places)
        else:
            frames = self._cost.frames(batch)
        self._samples += len(batch["sample_id"])
        self._frames += frames
        self._flops += self._cost.training_flops(batch, frames)
        if "token_mask" in batch:
            self._token_places += batch["token_mask"].numel()
            self._tokens += int(batch["token_mask"].sum())

    def add(self, batch: Batch, loss: Tensor, row_losses_B: Tensor | None) -> None:
        """The same on the device, with what came out. A loss that is not finite belongs to a step that was skipped."""
        self._losses.append(loss.detach().float())
        if len(self._names) > 1:
            tokens_B = self._cost.trained_tokens(batch).double()
            rows_B = torch.full_like(tokens_B, torch.nan) if row_losses_B is None else row_losses_B.double()
            columns_B3 = torch.stack([torch.ones_like(tokens_B), tokens_B, rows_B], dim=1)
            self._by_store_S3.index_add_(0, batch["store"], columns_B3)

    def leave_out(self, seconds: float) -> None:
        """Time that was not spent on training."""
        self._began += seconds

    def metrics(self, waited_s: float) -> dict[str, float]:
        """Over all ranks; `waited_s` is how long this rank has waited for data since the start of the run."""
        seconds = time.perf_counter() - self._began
        losses = torch.stack(self._losses)
        mine = _RankMetrics(
            loss=losses[losses.isfinite()].mean().item(),
            waiting=(waited_s - self._waited_s) / seconds,
            utilisation=self._flops / (seconds * self._peak),
            memory_gb=memory_gb(self._context.device),
            samples_per_s=self._samples / seconds,
            frames_per_s=self._frames / seconds,
            padding=1 - self._tokens / self._token_places if self._token_places else None,
            image_padding=1 - self._images / self._image_places if self._image_places else None,
            stores=self._by_store_S3.tolist(),
        )
        ranks = self._context.gather(mine)
        self._restart(waited_s)
        return _mean_over_ranks(ranks) | _by_store(ranks, self._names)


def _mean_over_ranks(ranks: Sequence[_RankMetrics]) -> dict[str, float]:
    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(ranks)

    metrics = {
        "loss": mean(rank.loss for rank in ranks),
        "samples_per_s": sum(rank.samples_per_s for rank in ranks),
        "frames_per_s": sum(rank.frames_per_s for rank in ranks),
        "waiting_share": mean(rank.waiting for rank in ranks),
        "memory_gb": max(rank.memory_gb for rank in ranks),
    }
    paddings = {
        "padding_share": [rank.padding for rank in ranks if rank.padding is not None],
        "image_padding_share": [rank.image_padding for rank in ranks if rank.image_padding is not None],
    }
    metrics |= {key: mean(values) for key, values in paddings.items() if values}
    utilisation = mean(rank.utilisation for rank in ranks)
    return metrics | ({"flops_utilisation": utilisation} if utilisation else {})


def _by_store(ranks: Sequence[_RankMetrics], names: Sequence[str]) -> dict[str, float]:
    """Of a mixture: each store's samples, trained tokens and mean loss over its samples."""
    if len(names) < 2:
        return {}
    sums_S3 = torch.tensor([rank.stores for rank in ranks], dtype=torch.float64).sum(dim=0)
    metrics: dict[str, float] = {}
    for name, sums in zip(names, sums_S3.tolist(), strict=True):
        metrics |= {f"samples/{name}": sums[_SAMPLES], f"tokens/{name}": sums[_TOKENS]}
        if sums[_SAMPLES] and sums[_LOSS] == sums[_LOSS]:  # not NaN: the model tells its samples' losses
            metrics[f"loss/{name}"] = sums[_LOSS] / sums[_SAMPLES]
    return metrics
