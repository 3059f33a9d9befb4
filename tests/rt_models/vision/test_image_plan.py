"""A batch whose images were found on the host, padded to a fixed number, trains as the batch alone does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rt_models.blocks.batch_norm import BatchNorm, BatchNormConfig
from rt_models.rt1 import RT1Config
from rt_models.vision.image_plan import plan_images
from tests.support.rt1_windows import make_batch

TINY = RT1Config.tiny()
SIZES = (3, 14, 20)


def batches() -> Iterator[dict[str, Tensor]]:
    for ends, keys in (([0, 4, 5, 6], None), ([2, 3, 4, 5], [7] * 4), ([1], None)):
        batch = make_batch(TINY, ends) if keys is None else make_batch(TINY, ends, crop_keys=keys)
        yield {k: v.double() if v.dtype == torch.float32 else v for k, v in batch.items()}


def trained(config: RT1Config, batch: dict[str, Tensor]) -> list[Tensor]:
    """Loss, what each window counted in it, gradients and running averages of one training step."""
    torch.manual_seed(0)
    model = config.build().double().train()
    loss = model.loss(batch)
    loss.backward()
    assert model.row_losses_B is not None
    return [loss.detach(), model.row_losses_B, *(p.grad for p in model.parameters()), *model.buffers()]  # type: ignore[misc]


@pytest.mark.parametrize("depth", [0.0, 0.5])
@pytest.mark.parametrize("statistics", ["synchronised", "per_rank", "frozen"])
def test_padding_changes_neither_loss_gradient_nor_averages(statistics: Any, depth: float) -> None:
    norm = BatchNormConfig(statistics=statistics)
    config = replace(TINY, backbone=replace(TINY.backbone, batch_norm=norm, stochastic_depth=depth))
    for batch in batches():
        alone = trained(config, batch)
        for sizes in (SIZES, SIZES[1:], SIZES[2:]):
            padded = trained(config, plan_images(batch, crops=True, capacities=sizes))
            for theirs, ours in zip(alone, padded, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_predictions_do_not_see_the_padding() -> None:
    model = TINY.build().double().eval()
    for batch in batches():
        planned = plan_images(batch, crops=False, capacities=SIZES)
        torch.testing.assert_close(model.predict(planned), model.predict(batch), rtol=1e-12, atol=1e-12)


def test_what_reaches_a_convolution_has_one_of_the_given_sizes() -> None:
    seen: set[int] = set()
    model = TINY.build().train()
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda _, inputs, __: seen.add(len(inputs[0])))
    for batch in batches():
        batch = {k: v.float() if v.dtype == torch.float64 else v for k, v in batch.items()}
        model.loss(plan_images(batch, crops=True, capacities=SIZES))
    assert seen <= set(SIZES) and len(seen) > 1


def test_a_batch_of_more_images_than_there_is_room_for_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch has 3 images, and the largest capacity is 2"):
        plan_images(make_batch(TINY, [2]), crops=True, capacities=(1, 2))


def test_a_batch_without_a_real_step_is_refused_as_without_a_plan() -> None:
    batch = make_batch(TINY, [2])
    for key, value in (("frame_index", -1), ("step_mask", False), ("loss_mask", False)):
        batch[key] = torch.full_like(batch[key], value)
    with pytest.raises(ValueError, match="no window has a real step"):
        plan_images(batch, crops=True, capacities=(4,))


def test_no_gradient_reaches_an_image_that_pads() -> None:
    norm = BatchNorm(BatchNormConfig(), 4).double().train()
    x = torch.randn(5, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    norm(x, torch.tensor([3])).square().sum().backward()
    assert x.grad is not None and not x.grad[3:].any() and x.grad[:3].any()


def two_ranks(context: Any) -> list[float]:
    """One rank's part of the same four windows, padded to sizes of its own."""
    torch.manual_seed(0)
    model = TINY.build().double().train()
    batch = next(batches())
    part = {k: v if k == "frames" else v[context.rank :: 2] for k, v in batch.items()}
    model.loss(plan_images(part, crops=True, capacities=(8 + 3 * context.rank,))).backward()
    return averages(model)


def averages(model: Any) -> list[float]:
    backbone = model.tokenizer.backbone
    return [*backbone.stem_norm.running_mean.tolist(), *backbone.head_norm.running_var.tolist()]


def test_the_statistics_of_two_padded_ranks_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    from tests.support.ranks import run_ranks

    torch.manual_seed(0)
    model = TINY.build().double().train()
    model.loss(next(batches()))
    whole = averages(model)
    for rank in run_ranks(two_ranks, 2, tmp_path):
        assert rank == pytest.approx(whole, rel=1e-12)


def test_a_planned_batch_may_be_replayed_and_another_may_not() -> None:
    batch = make_batch(TINY, [2, 3])
    planned = plan_images(batch, crops=True, capacities=SIZES)
    assert TINY.build().replayable(planned) and not TINY.build().replayable(batch)
    twice = replace(TINY, compute=replace(TINY.compute, activation_checkpointing="blocks"))
    assert not twice.build().replayable(planned)
