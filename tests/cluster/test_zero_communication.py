"""What ranks send each other under ZeRO and bf16: float32, or half as much, and what is kept is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cluster.engine import DeepSpeedEngineConfig
from cluster.zero import Precision, ZeroConfig
from tests.support.ranks import run_ranks

WIDTH = 256
KINDS: tuple[Precision, ...] = ("fp32", "bf16")
HALVED = {2: ["all_reduce"], 3: ["all_gather_into_tensor", "reduce_scatter_tensor"]}


class Wider(nn.Linear):
    """A layer of one's own: no class that DeepSpeed looks for."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, WIDTH), nn.GELU(), Wider(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, 8)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return (self.head(self.body(batch["x"])).float() - batch["y"]).square().mean()


def trained(context: Any, stage: Any, communication: Precision) -> dict[str, Any]:
    """Losses of four updates, what the last sent in bytes by kind of call, and whether the whole is what was kept."""
    import deepspeed.comm
    from deepspeed.comm.comm import comms_logger

    zero = ZeroConfig(stage=stage, communication=communication, persist_elements=WIDTH)
    config = DeepSpeedEngineConfig(zero=zero, precision="bf16")
    engine = config.build(context, micro_batch=4, accumulation=1)
    engine.build(Net, lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3)).train()
    deepspeed.comm.configure(enabled=True, prof_all=True, verbose=False)
    losses = []
    for update in range(4):
        comms_logger.comms_dict.clear()
        x_BD = torch.randn(8, 8, generator=torch.Generator().manual_seed(update))[context.rank :: 2]
        loss = engine.forward({"x": x_BD, "y": 3 * x_BD.roll(1, dims=1)})
        engine.backward(loss)
        engine.step()
        losses.append(sum(context.gather(float(loss.detach()))) / 2)
    sent = {
        call: sum(size * found[0] for size, found in sizes.items()) for call, sizes in comms_logger.comms_dict.items()
    }
    deepspeed.comm.configure(enabled=False)
    whole = engine.consolidated_state_dict() or {}
    parts = [(part, whole[part.name].flatten()) for part in engine._fragments() if whole]
    exact = all(torch.equal(value[part.start : part.start + part.size], part.view(part.owner)) for part, value in parts)
    engine.close()
    return {"losses": losses, "sent": sent, "exact": exact}


def of_both(context: Any, stage: Any) -> dict[str, dict[str, Any]]:
    return {kind: trained(context, stage, kind) for kind in KINDS}


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_in_bf16_half_is_sent_and_all_of_it_kept(stage: Any, tmp_path: Path) -> None:
    found = run_ranks(of_both, 2, tmp_path, stage)[0]
    exact, rounded = found["fp32"], found["bf16"]
    layers = sum(p.numel() for p in Net().parameters())
    for call in HALVED[stage]:
        assert exact["sent"][call] >= 4 * layers / (2 if "gather" in call else 1)  # layers of torch's own too
        assert rounded["sent"][call] < 0.52 * exact["sent"][call]  # norms, biases and what is small are whole
    assert exact["exact"] and rounded["exact"]
    assert exact["losses"][-1] < exact["losses"][0]
    assert rounded["losses"] == pytest.approx(exact["losses"], rel=0.02)
    assert rounded["losses"][0] == exact["losses"][0]  # autocast computes with rounded weights in any case


def test_what_cannot_be_sent_in_bf16_is_refused() -> None:
    with pytest.raises(ValueError, match=r"zero\.communication bf16 needs zero\.stage 1, 2 or 3, got 0"):
        ZeroConfig(stage=0, communication="bf16")
    with pytest.raises(ValueError, match=r"zero\.communication = 'fp8': use fp32 or bf16"):
        ZeroConfig(communication="fp8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"zero\.communication bf16 needs engine\.precision bf16"):
        DeepSpeedEngineConfig(zero=ZeroConfig(communication="bf16"))
