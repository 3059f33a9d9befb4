"""The engine's steps on a GPU: nothing waits for the device, and what is replayed is what was recorded."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from cluster.context import LocalContext
from cluster.engine import TorchEngineConfig
from pipelines.training.device_copies import DeviceCopies
from rt_models.rt1 import RT1Config
from rt_models.vision.image_plan import plan_images
from tests.support.rt1_windows import make_batch

SMALL = RT1Config.small()
CAPACITIES = (12, 20, 40)
ENDS = ([0, 4, 5, 6, 7, 8], [3, 4, 5, 0, 1, 2], [0, 0, 1, 0, 1, 0])


def batches() -> list[dict[str, Tensor]]:
    """In pinned memory, as the loader has them; they need capacities of different sizes."""
    made = [
        plan_images(make_batch(SMALL, ends, frame_size=(96, 96)), crops=True, capacities=CAPACITIES) for ends in ENDS
    ]
    room = [torch.zeros(CAPACITIES[-1] - len(each["frames"]), 96, 96, 3, dtype=torch.uint8) for each in made]
    full = [each | {"frames": torch.cat([each["frames"], rest])} for each, rest in zip(made, room, strict=True)]
    return [{key: value.pin_memory() for key, value in each.items()} for each in full]


def engine_of(**settings: Any) -> Any:
    torch.manual_seed(0)
    engine: Any = TorchEngineConfig(ema_decay=0.9, **settings).build(
        LocalContext("cuda"), micro_batch=6, accumulation=2
    )
    engine.build(SMALL.build, lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, fused=True))
    engine.set_learning_rate(1e-3)
    return engine


@pytest.mark.parametrize("cuda_graphs", ["off", "on"])
def test_twenty_steps_without_a_wait(cuda_graphs: str) -> None:
    engine, copies, norms = engine_of(cuda_graphs=cuda_graphs), DeviceCopies(torch.device("cuda")), []
    try:
        for number, batch in zip(range(64), itertools.cycle(batches()), strict=False):
            if number == 24:  # kernels are compiled, constants on the device, graphs recorded
                torch.cuda.set_sync_debug_mode("error")
            engine.forward_backward(copies.copied(batch))
            copies.used()
            norms.append(engine.step())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack([norm for norm in norms if norm is not None]).isfinite().all()
    engine.close()


def test_a_replayed_training_is_the_training() -> None:
    losses = {}
    for cuda_graphs in ("off", "on"):
        engine, copies = engine_of(cuda_graphs=cuda_graphs), DeviceCopies(torch.device("cuda"))
        found = []
        for _, batch in zip(range(24), itertools.cycle(batches()), strict=False):
            found.append(engine.forward_backward(copies.copied(batch)))
            assert engine._model.row_losses_B.mean().item() == pytest.approx(found[-1].item(), rel=1e-5)
            copies.used()
            engine.step()
        losses[cuda_graphs] = torch.stack(found).tolist()
        assert engine._replay is None or len(engine._replay._recorded) == len(
            {len(b["image_frame"]) for b in batches()}
        )
        engine.close()
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-3)


def test_an_update_of_nan_is_left_out_on_the_device() -> None:
    engine, copies = engine_of(), DeviceCopies(torch.device("cuda"))
    good = batches()[0]
    poisoned = good | {"embedding": torch.full_like(good["embedding"], torch.nan).pin_memory()}
    for _ in range(2):
        engine.forward_backward(copies.copied(good))
        engine.step()
    before = engine.consolidated_state_dict()
    for _ in range(2):
        engine.forward_backward(copies.copied(poisoned))
        norm = engine.step()
    assert not bool(norm.isfinite())
    after = engine.consolidated_state_dict()
    trained = [name for name, parameter in engine._model.named_parameters() if parameter.requires_grad]
    assert all(torch.equal(before[name], after[name]) for name in trained)
    engine.close()
