"""The price of Ray Train and DeepSpeed: an optimizer step through our engines against a bare torch DDP loop.

The bare loop runs in processes of its own, without Ray: DDP, clipping, AdamW. Beside it stand the workers of a Ray
training with one engine a side. Both train the same model from the same batches; a baton (a torch TCPStore) lets one
side work at a time, in turn, round after round, so that a busy machine is busy for every side. A side's seconds are
those of its slowest rank, and `phases` says in which call they were spent.

Before any round the sides' losses are compared: what is not the same training is not worth timing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from measure import parser, positive, print_json, ratio, start
from torch import Tensor, nn
from workload import batch

from cluster.context import WorkerContext
from cluster.engine import DeepSpeedEngineConfig, TorchEngineConfig
from cluster.launch import RayLaunch, launch
from cluster.session import RaySession, connect
from cluster.zero import ZeroConfig
from rt_models.rt1 import RT1Config

BARE = "bare DDP"
SIDES: dict[str, Any] = {
    "Ray, torch": TorchEngineConfig(),
    **{f"Ray, ZeRO-{stage}": DeepSpeedEngineConfig(zero=ZeroConfig(stage=stage)) for stage in (0, 1, 2, 3)},
}
PHASES = ("forward", "backward", "step")
WAIT = timedelta(minutes=30)
WIDTH = 700


class Blocks(nn.Module):
    """Residual blocks of two linear layers: 8.7 M parameters, and nothing but matrix products to compute."""

    def __init__(self, width: int = WIDTH, depth: int = 9) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(depth)
        )

    def loss(self, inputs: Mapping[str, Tensor]) -> Tensor:
        x_BD = inputs["x"]
        for block in self.blocks:
            x_BD = x_BD + block(x_BD)
        return (x_BD - inputs["y"]).square().mean()


def blocks_batch(size: int, width: int = WIDTH) -> dict[str, Tensor]:
    x_BD = torch.randn(size, width)
    return {"x": x_BD, "y": x_BD.roll(1, dims=1)}


def rt1_batch(size: int) -> dict[str, Tensor]:
    return batch("small", num_segments=size, windows_per_segment=1)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], dict[str, Tensor]], int]] = {
    "blocks": (Blocks, blocks_batch, 512),
    "rt1_small": (lambda: RT1Config.small().build(), rt1_batch, 16),
}
"""Model, batch, and samples of a micro-batch."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every process must know: who works when, and on what."""

    model: str
    micro_batch: int
    accumulation: int
    steps: int
    ranks: int
    turns: tuple[str, ...]
    """The name of the side whose turn it is, turn after turn."""
    port: int


def main() -> None:
    arguments = _arguments()
    start(arguments)
    with connect(RaySession(num_cpus=max(arguments.ranks, os.cpu_count() or 1))):
        results = {model: compare(model, arguments) for model in arguments.models}
    print_json("engine_overhead", arguments, results)


def compare(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All sides on one model, printed and returned."""
    names = [BARE, *SIDES]
    turns = [name for number in range(arguments.rounds + 1) for name in (names if number % 2 == 0 else names[::-1])]
    store = _store(None)
    micro_batch = arguments.micro_batch or MODELS[model][2]
    plan = Plan(
        model=model,
        micro_batch=micro_batch,
        accumulation=arguments.accumulation,
        steps=arguments.steps,
        ranks=arguments.ranks,
        turns=tuple(turns),
        port=store.port,
    )
    conductor = threading.Thread(target=_conduct, args=(store, plan), daemon=True)
    conductor.start()
    bare = multiprocessing.spawn(_bare_rank, (plan,), nprocs=plan.ranks, join=False)
    launch(_ray_rank, {"plan": plan}, RayLaunch(num_workers=plan.ranks))
    while not bare.join():
        pass
    conductor.join()
    return _report(store, plan)


def _report(store: torch.distributed.TCPStore, plan: Plan) -> dict[str, Any]:
    told = [[json.loads(store.get(_key("told", turn, rank))) for rank in range(plan.ranks)] for turn in _all(plan)]
    first = {plan.turns[turn]: told[turn][0]["loss"] for turn in range(1 + len(SIDES))}
    for name, loss in first.items():
        if abs(loss - first[BARE]) > 1e-4 * abs(first[BARE]):
            raise SystemExit(f"{name} trains something else: loss {loss} and not {first[BARE]}")
    timed = range(1 + len(SIDES), len(plan.turns))  # the first round is not counted
    seconds: dict[str, list[float]] = {name: [] for name in (BARE, *SIDES)}
    phases: dict[str, list[list[float]]] = {name: [] for name in (BARE, *SIDES)}
    for turn in timed:
        slowest = max(told[turn], key=lambda each: each["seconds"])
        seconds[plan.turns[turn]].append(slowest["seconds"] / plan.steps)
        phases[plan.turns[turn]].append([each / plan.steps for each in slowest["phases"]])
    parameters = sum(p.numel() for p in MODELS[plan.model][0]().parameters())
    print(
        f"\n{plan.model}: {parameters / 1e6:.1f} M parameters, {plan.ranks} ranks, micro-batch {plan.micro_batch}, "
        f"accumulation {plan.accumulation}, {len(seconds[BARE])} rounds of {plan.steps} steps"
    )
    results = {}
    for name in seconds:
        parts = [statistics.median(column) for column in zip(*phases[name], strict=True)]
        against = ratio(seconds[name], seconds[BARE])
        each = statistics.median(seconds[name])
        listed = ", ".join(f"{phase} {part * 1e3:.0f}" for phase, part in zip(PHASES, parts, strict=True))
        print(f"  {name:12} {each * 1e3:6.0f} ms a step: {against} times bare DDP; {listed} ms", flush=True)
        results[name] = {"seconds": each, "ratio": against.to_json(), "phases": dict(zip(PHASES, parts, strict=True))}
    return results


# --- The sides ---


def _bare_rank(rank: int, plan: Plan) -> None:
    """One process of the bare loop."""
    torch.set_num_threads(1)
    store = torch.distributed.PrefixStore("bare", _store(plan.port))
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=plan.ranks)
    _take_turns({BARE: _bare_side(plan)}, plan, rank)
    torch.distributed.destroy_process_group()


def _ray_rank(context: WorkerContext, config: dict[str, Any]) -> None:
    """One Ray worker, with an engine for each side."""
    plan: Plan = config["plan"]
    sides = {name: _engine_side(made, plan, context) for name, made in SIDES.items()}
    _take_turns(sides, plan, context.rank)


Step = Callable[[Sequence[Any], list[float]], float]
"""Trains on the micro-batches of an update, adds the seconds of each phase, and returns the last loss."""


def _bare_side(plan: Plan) -> Step:
    torch.manual_seed(0)
    model = MODELS[plan.model][0]()
    optimizer = _optimizer(model)
    wrapped = nn.parallel.DistributedDataParallel(_Loss(model), forward_sync_buffers=False)

    def update(micro_batches: Sequence[Any], phases: list[float]) -> float:
        loss = torch.zeros(())
        for number, micro_batch in enumerate(micro_batches, start=1):
            wrapped.require_backward_grad_sync = number == len(micro_batches)  # what no_sync() sets
            began = time.perf_counter()
            loss = wrapped(micro_batch)
            computed = time.perf_counter()
            (loss / len(micro_batches)).backward()
            ended = time.perf_counter()
            phases[0] += computed - began
            phases[1] += ended - computed
        began = time.perf_counter()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        phases[2] += time.perf_counter() - began
        return loss.item()

    return update


class _Loss(nn.Module):
    """The loss through `forward`, where DDP's hooks are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, inputs: Any) -> Tensor:
        return self.model.loss(inputs)


def _engine_side(config: Any, plan: Plan, context: WorkerContext) -> Step:
    torch.manual_seed(0)
    engine = config.build(context, micro_batch=plan.micro_batch, accumulation=plan.accumulation)
    engine.build(MODELS[plan.model][0], _optimizer)
    engine.set_learning_rate(1e-3)

    def update(micro_batches: Sequence[Any], phases: list[float]) -> float:
        loss = torch.zeros(())
        for micro_batch in micro_batches:
            began = time.perf_counter()
            loss = engine.forward(micro_batch)
            computed = time.perf_counter()
            engine.backward(loss)
            differentiated = time.perf_counter()
            engine.step()
            ended = time.perf_counter()
            for number, seconds in enumerate((computed - began, differentiated - computed, ended - differentiated)):
                phases[number] += seconds
        return loss.item()

    return update


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


# --- The baton ---


def _take_turns(sides: Mapping[str, Step], plan: Plan, rank: int) -> None:
    """Work whenever it is the turn of one of these sides, and tell how long it took."""
    torch.manual_seed(rank)
    make = partial(MODELS[plan.model][1], plan.micro_batch)
    micro_batches = [make() for _ in range(plan.accumulation)]
    store = _store(plan.port)
    for turn, name in enumerate(plan.turns):
        if name in sides:
            store.wait([_key("turn", turn)], WAIT)
            phases = [0.0] * len(PHASES)
            began = time.perf_counter()
            losses = [sides[name](micro_batches, phases) for _ in range(plan.steps)]
            told = {"seconds": time.perf_counter() - began, "phases": phases, "loss": losses[-1]}
            store.set(_key("told", turn, rank), json.dumps(told))


def _conduct(store: torch.distributed.TCPStore, plan: Plan) -> None:
    """Hand the baton on as soon as every rank of the side before has told."""
    for turn in _all(plan):
        store.set(_key("turn", turn), "go")
        store.wait([_key("told", turn, rank) for rank in range(plan.ranks)], WAIT)


def _store(port: int | None) -> torch.distributed.TCPStore:
    """The conductor's where no port is given, else a connection to it."""
    return torch.distributed.TCPStore(
        "127.0.0.1", port or 0, is_master=port is None, wait_for_workers=False, timeout=WAIT
    )


def _all(plan: Plan) -> range:
    return range(len(plan.turns))


def _key(*parts: object) -> str:
    return "-".join(map(str, parts))


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, rounds=7)
    made.add_argument("--models", nargs="+", choices=sorted(MODELS), default=list(MODELS), help="(default: all)")
    made.add_argument("--ranks", type=positive, default=2, help="processes of each side (default: 2)")
    made.add_argument("--steps", type=positive, default=5, help="optimizer steps a turn (default: 5)")
    made.add_argument("--accumulation", type=positive, default=1, help="micro-batches a step (default: 1)")
    made.add_argument("--micro-batch", type=positive, help="samples (default: 512 of blocks, 16 windows of rt1_small)")
    return made.parse_args()


if __name__ == "__main__":
    main()
