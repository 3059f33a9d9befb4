"""What is recorded and when, with a recorder that needs no GPU: it replays by running on the recorded batch again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cluster.context import LocalContext
from cluster.engine import TorchEngineConfig
from cluster.graph_replay import GraphReplay, replays


class Model(nn.Module):
    """Its loss of each row is a result beside the loss; `replayable` says no to batches that hold "odd"."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.row_losses_B: Tensor | None = None

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        losses_B = (batch["x"] * self.weight).square().sum(dim=1)
        self.row_losses_B = losses_B.detach()
        return losses_B.mean()

    def replayable(self, batch: Mapping[str, Tensor]) -> bool:
        return "odd" not in batch


def recording(model: Model, run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """Like a graph: nothing is computed while it records, and a replay writes where the first results lie."""
    assert model.weight.grad is not None  # else a graph would own the gradient and not add to it
    gradient = model.weight.grad.clone()
    loss, rows = run(), model.row_losses_B
    assert rows is not None
    model.weight.grad.copy_(gradient)

    def replay() -> None:
        before = model.row_losses_B
        loss.copy_(run())
        assert model.row_losses_B is not None
        rows.copy_(model.row_losses_B)
        model.row_losses_B = before

    return loss, replay


def trained(*, replayed: bool) -> tuple[list[float], list[list[float]], Tensor]:
    """Losses, row losses and weights of a training on batches of three shapes, two micro-batches an update."""
    engine: Any = TorchEngineConfig().build(LocalContext("cpu"), micro_batch=2, accumulation=2)
    model = engine.build(Model, lambda m: torch.optim.Adam(m.parameters(), lr=0.1))
    if replayed:
        engine._replay = GraphReplay(
            model, super(type(engine), engine).forward_backward, partial(recording, model), must=True
        )
    losses, rows, generator = [], [], torch.Generator().manual_seed(0)
    for number in range(24):
        loss = engine.forward_backward({"x": torch.randn(2 + number % 3, 3, generator=generator)})
        losses.append(loss)
        rows.append(model.row_losses_B.tolist())
        engine.step()
    if replayed:
        assert len(engine._replay._recorded) == 3
    return [float(loss) for loss in losses], rows, model.weight.detach()


def test_a_replayed_training_is_the_training() -> None:
    (losses, rows, weight), (theirs, their_rows, their_weight) = trained(replayed=True), trained(replayed=False)
    assert losses == theirs and rows == their_rows and torch.equal(weight, their_weight)


def test_a_model_that_cannot_be_recorded_trains_without(caplog: pytest.LogCaptureFixture) -> None:
    def refusing(run: Callable[[], Tensor]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    model = Model()

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        return model.loss(batch).detach()

    replay = GraphReplay(model, run, refusing, must=False)
    found = [float(replay({"x": torch.ones(1, 3)})) for _ in range(5)]
    assert found == [3.0] * 5 and caplog.text.count("cannot be recorded") == 1
    must = GraphReplay(model, run, refusing, must=True)
    must({"x": torch.ones(1, 3)})
    must({"x": torch.ones(1, 3)})
    with pytest.raises(ValueError, match=r"engine\.cuda_graphs on: this model cannot be recorded"):
        must({"x": torch.ones(1, 3)})
    with pytest.raises(ValueError, match="Model decides things on the host while it computes such a batch"):
        must({"x": torch.ones(1, 3), "odd": torch.ones(1)})


def test_without_a_gpu_there_is_nothing_to_replay_on() -> None:
    context = LocalContext("cpu")
    assert not replays("auto", context) and not replays("off", context)
    with pytest.raises(ValueError, match=r"engine\.cuda_graphs on: this training runs on no GPU"):
        replays("on", context)
