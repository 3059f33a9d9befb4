"""Real ranks for tests: processes with torchrun's environment and a gloo group. And a model small enough."""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from cluster.context import TorchrunContext
from tests.support.fork_server import fork_server

WIDTH = 8


class Net(nn.Module):
    """An MLP whose parent initialises its children, with a bare parameter and a buffer that training moves."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.body = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, WIDTH))
        self.frozen = nn.Linear(WIDTH, WIDTH)
        self.frozen.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))
        generator = torch.Generator().manual_seed(1)
        for parameter in self.body.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def predict(self, x_BD: Tensor) -> Tensor:
        return self.frozen(self.body(x_BD) * self.scale)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        if self.training:
            self.seen += batch["x"].sum()
        return (self.predict(batch["x"]) - batch["y"]).square().mean()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with two groups, one of them at half the learning rate."""
    groups = [
        {"params": [p for p in model.parameters() if p.requires_grad and p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.requires_grad and p.ndim <= 1], "lr_scale": 0.5},
    ]
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.01)


def micro_batches(update: int, *, global_batch: int, micro_batch: int, rank: int, world_size: int) -> list[Any]:
    """This rank's micro-batches of one update: samples rank, rank + world, ... of the same global batch."""
    generator = torch.Generator().manual_seed(update)
    x_BD = torch.randn(global_batch, WIDTH, generator=generator)
    y_BD = 3 * x_BD.roll(1, dims=1)
    own = [{"x": x_BD[rank::world_size], "y": y_BD[rank::world_size]}]
    return [
        {key: value[start : start + micro_batch] for key, value in part.items()}
        for part in own
        for start in range(0, global_batch // world_size, micro_batch)
    ]


def train(engine: Any, updates: range, *, global_batch: int = 16, micro_batch: int = 4) -> list[list[float]]:
    """Train over the updates; returns [mean loss over all ranks, gradient norm] of each."""
    curve = []
    context = engine.context
    for update in updates:
        engine.set_learning_rate(3e-2 / (update + 1))
        losses, norm = [], None
        where = {"rank": context.rank, "world_size": context.world_size}
        for batch in micro_batches(update, global_batch=global_batch, micro_batch=micro_batch, **where):
            loss = engine.forward(batch)
            engine.backward(loss)
            losses.append(loss.item())
            assert norm is None
            norm = engine.step()
        assert norm is not None
        means = context.gather(sum(losses) / len(losses))
        curve.append([sum(means) / len(means), float(norm)])
    return curve


def run_ranks(function: Callable[..., Any], world_size: int, folder: Path, *arguments: Any) -> list[Any]:
    """Call function(context, *arguments) on each of `world_size` processes; returns their results by rank."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork_ranks(_rank, world_size, (function, world_size, port, folder, arguments))
    return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(world_size)]


def fork_ranks(function: Callable[..., None], world_size: int, arguments: tuple[Any, ...]) -> None:
    """Call function(rank, *arguments) on each of `world_size` processes."""
    fork_server()
    multiprocessing.start_processes(function, arguments, nprocs=world_size, start_method="forkserver")


def _rank(rank: int, function: Callable[..., Any], world_size: int, port: int, folder: Path, arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    context = TorchrunContext("cpu", timeout_s=60)
    try:
        result = function(context, *arguments)
        (folder / f"result-{rank}").write_bytes(pickle.dumps(result))
    finally:
        context.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a thread that still waits in a collective would abort the interpreter as it ends
