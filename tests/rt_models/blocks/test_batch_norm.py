"""BatchNorm: flax's averages, and statistics over all ranks that equal those of the whole batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from rt_models.blocks.batch_norm import BatchNorm, BatchNormConfig, averages_untouched
from tests.support.ranks import fork_ranks

FRAMES_OF_RANK = (2, 5)  # unequal on purpose: padding leaves ranks with different numbers of frames


def perturbed(config: BatchNormConfig, channels: int = 3) -> BatchNorm:
    norm = config.build(channels).double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, channels))
        norm.bias.copy_(torch.linspace(-1, 1, channels))
    return norm


def frames(count: int = sum(FRAMES_OF_RANK)) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return 5 + 2 * torch.randn(count, 3, 4, 2, generator=generator, dtype=torch.float64)


def cotangents() -> Tensor:
    return torch.randn(frames().shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def run(norm: BatchNorm, x: Tensor, cotangent: Tensor) -> dict[str, np.ndarray]:
    x = x.clone().requires_grad_()
    y = norm.train()(x)
    (y * cotangent).sum().backward()
    assert x.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    values = {"y": y, "dx": x.grad, "dweight": norm.weight.grad, "dbias": norm.bias.grad}
    return {name: value.detach().numpy() for name, value in (values | dict(norm.named_buffers())).items()}


def rank_main(rank: int, folder: str, statistics: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(FRAMES_OF_RANK))
    mine = slice(sum(FRAMES_OF_RANK[:rank]), sum(FRAMES_OF_RANK[: rank + 1]))
    norm = perturbed(BatchNormConfig(statistics=statistics))  # type: ignore[arg-type]
    np.savez(f"{folder}/{rank}.npz", **run(norm, frames()[mine], cotangents()[mine]))
    dist.destroy_process_group()


def test_synchronised_ranks_equal_the_whole_batch_in_value_gradient_and_averages(tmp_path: Path) -> None:
    fork_ranks(rank_main, len(FRAMES_OF_RANK), (str(tmp_path), "synchronised"))
    whole = run(perturbed(BatchNormConfig()), frames(), cotangents())
    ranks = [dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(len(FRAMES_OF_RANK))]
    for name in ("y", "dx"):
        np.testing.assert_allclose(np.concatenate([rank[name] for rank in ranks]), whole[name], atol=1e-12)
    for name in ("dweight", "dbias"):
        np.testing.assert_allclose(sum(rank[name] for rank in ranks), whole[name], atol=1e-12)
    for name in ("running_mean", "running_var"):
        for rank in ranks:
            np.testing.assert_allclose(rank[name], whole[name], atol=1e-12)
    # What must not pass for it: each rank by itself.
    alone = run(perturbed(BatchNormConfig(statistics="per_rank")), frames()[:2], cotangents()[:2])
    assert np.abs(alone["y"] - whole["y"][:2]).max() > 0.01


def test_averages_follow_flax_with_the_biased_variance() -> None:
    norm, x = perturbed(BatchNormConfig(momentum=0.99)), frames(2)
    norm.train()(x)
    biased = x.var(dim=(0, 2, 3), unbiased=False)
    torch.testing.assert_close(norm.running_var, 0.99 + 0.01 * biased, rtol=1e-12, atol=0)
    torch.testing.assert_close(norm.running_mean, 0.01 * x.mean(dim=(0, 2, 3)), rtol=1e-12, atol=0)
    unbiased = x.var(dim=(0, 2, 3), unbiased=True)
    assert (norm.running_var - (0.99 + 0.01 * unbiased)).abs().max() > 1e-4


@pytest.mark.parametrize("training", [True, False])
def test_frozen_uses_the_stored_averages_and_leaves_them(training: bool) -> None:
    norm = perturbed(BatchNormConfig(statistics="frozen")).train(training)
    with torch.no_grad():
        norm.running_mean.fill_(5.0)
        norm.running_var.fill_(4.0)
    x = frames()
    scaled = (x - 5) / (4 + 1e-3) ** 0.5 * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), scaled)
    assert norm.running_mean.eq(5.0).all()


def test_averages_do_not_follow_what_is_not_finite() -> None:
    norm = BatchNormConfig().build(3).double().train()
    bad = frames()
    bad[0, 1] = torch.nan
    norm(bad)
    assert norm.running_mean.isfinite().all() and norm.running_var.isfinite().all()
    assert (norm.running_mean != 0).tolist() == [True, False, True]


def test_averages_stay_in_float32_when_the_model_goes_to_bf16() -> None:
    norm = BatchNormConfig().build(3)
    with torch.no_grad():
        norm.running_mean.fill_(0.1234567)
    norm.to(torch.bfloat16)
    assert norm.weight.dtype == torch.bfloat16
    assert norm.running_mean.dtype == torch.float32 and norm.running_mean[0].item() == pytest.approx(
        0.1234567, abs=1e-8
    )
    y = norm.train()(frames().to(torch.bfloat16))
    assert y.dtype == torch.bfloat16 and norm.running_mean[0].item() != pytest.approx(0.1234567, abs=1e-4)


def test_averages_untouched_inside_the_context_only() -> None:
    norm = perturbed(BatchNormConfig()).train()
    with averages_untouched(norm):
        norm(frames())
    assert norm.running_mean.eq(0).all()
    norm(frames())
    assert norm.running_mean.ne(0).all()
