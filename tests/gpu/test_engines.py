"""On one GPU every engine trains as plain torch does on a CPU, and goes on from its own checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.context import LocalContext
from cluster.engine import DeepSpeedEngineConfig, TorchEngineConfig
from cluster.zero import STAGES, ZeroConfig, restore_linear
from rt_models.rt1 import RT1Config
from rt_models.vision.image_plan import plan_images
from tests.support.ranks import Net, micro_batches, optimizer_of
from tests.support.rt1_windows import make_batch

UPDATES, SAVED_AT = 8, 4
SETTINGS: Any = {"clip_norm": 0.5, "ema_decay": 0.8}
CONFIGS: dict[str, Any] = {
    "torch": TorchEngineConfig(**SETTINGS),
    **{
        f"zero-{s}": DeepSpeedEngineConfig(
            zero=ZeroConfig(stage=s, persist_elements=1, bucket_elements=1000), **SETTINGS
        )
        for s in STAGES
    },
}


def built(config: Any, device: str) -> Any:
    engine = config.build(LocalContext(device), micro_batch=4, accumulation=4)
    torch.manual_seed(0)
    engine.build(Net, optimizer_of)
    return engine


def train(engine: Any, updates: range) -> list[float]:
    """The losses of all micro-batches, and the norm of each update."""
    found = []
    for update in updates:
        engine.set_learning_rate(3e-2 / (update + 1))
        for batch in micro_batches(update, global_batch=16, micro_batch=4, rank=0, world_size=1):
            on_device = {key: value.to(engine.context.device) for key, value in batch.items()}
            found.append(float(engine.forward_backward(on_device)))
            norm = engine.step()
        found.append(float(norm))
    return found


def rt1_losses(config: Any, device: str, checkpointing: Any) -> list[float]:
    """Of three updates of a tiny RT-1, whose norms lie in pieces under ZeRO-3."""
    tiny = RT1Config.tiny()
    model = replace(tiny, compute=replace(tiny.compute, activation_checkpointing=checkpointing))
    batch = make_batch(tiny, [0, 4, 5, 8], frame_size=(96, 96))
    planned = plan_images(batch, crops=True, capacities=(24,))
    engine = config.build(LocalContext(device), micro_batch=4, accumulation=1)
    torch.manual_seed(0)
    try:
        engine.build(model.build, lambda m: torch.optim.SGD(m.parameters(), lr=0.05))
        engine.set_learning_rate(0.05)
        on_device = {key: value.to(engine.context.device) for key, value in planned.items()}
        losses = []
        for _ in range(3):
            losses.append(float(engine.forward_backward(on_device)))
            engine.step()
        return losses
    finally:
        engine.close()
        restore_linear()


@pytest.mark.parametrize("checkpointing", ["off", "selective"])
@pytest.mark.parametrize("name", ["zero-1", "zero-3"])
def test_our_kernels_train_under_zero_as_under_torch(name: str, checkpointing: Any, device: str) -> None:
    pytest.importorskip("deepspeed", reason="needs DeepSpeed")
    expected = rt1_losses(CONFIGS["torch"], device, "off")
    assert rt1_losses(CONFIGS[name], device, checkpointing) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_engine_trains_as_torch_on_a_cpu_and_resumes(name: str, tmp_path: Path) -> None:
    if name != "torch":
        pytest.importorskip("deepspeed", reason="needs DeepSpeed")
    reference = built(CONFIGS["torch"], "cpu")
    expected = train(reference, range(UPDATES))
    engine = built(CONFIGS[name], "cuda:0")
    try:
        first = train(engine, range(SAVED_AT))
        engine.save(tmp_path)
        rest = train(engine, range(SAVED_AT, UPDATES))
        engine.close()
        engine = built(CONFIGS[name], "cuda:0")
        engine.load(tmp_path)
        resumed = train(engine, range(SAVED_AT, UPDATES))
        state = engine.consolidated_state_dict()
    finally:
        engine.close()
        restore_linear()
    assert [*first, *rest] == pytest.approx(expected, rel=1e-3)
    assert resumed == pytest.approx(rest, rel=1e-6)
    theirs = reference.consolidated_state_dict()
    for key, value in theirs.items():
        torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-4, msg=key)
