"""What a rank holds under ZeRO 0 to 3: live tensor bytes by kind against the formula, and peak resident memory beside.

Two CPU ranks train 201 M parameters with Adam in fp32. In the middle of the third update, between two micro-batches,
each rank walks all live tensors and sorts their memory into parameters, gradients and optimizer state; what is left are
communication buffers and activations. The formula is `cluster.zero.state_bytes`.

Peak memory is that of the process (VmHWM, over what torch and DeepSpeed took before the model), while the engine is
built and from then on. The second is compared with `state_bytes` and `temporary_bytes` together; what is left over
(activations, the allocator's own) should be little, and the same for all stages.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from measure import parser, positive, print_json, start
from torch import Tensor, nn

from cluster import zero
from cluster.context import TorchrunContext
from cluster.engine import DeepSpeedEngineConfig
from cluster.zero import ZeroConfig, state_bytes, temporary_bytes

GIGABYTE = 10**9
KINDS = ("parameters", "gradients", "optimizer")
TOLERANCE = 0.15


class Layers(nn.Module):
    """Square linear layers; all of its memory is parameters."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def loss(self, x_BD: Tensor) -> Tensor:
        for layer in self.layers:
            x_BD = x_BD + torch.tanh(layer(x_BD))
        return x_BD.square().mean()


def main() -> None:
    arguments = _arguments()
    start(arguments)
    count = arguments.depth * (arguments.width**2 + arguments.width)
    print(f"\n{count / 1e6:.0f} M parameters, {arguments.ranks} ranks, fp32 Adam; GB a rank, formula in brackets")
    results = {stage: compare(stage, count, arguments) for stage in arguments.stages}
    print_json("zero_memory", arguments, results)
    worst = max(off for result in results.values() for off in result["off"].values())
    if worst > TOLERANCE:
        raise SystemExit(f"a measured figure is {worst:.0%} off its formula")


def compare(stage: int, count: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measured and expected bytes of one stage, printed and returned."""
    measured = _measure(stage, arguments)
    expected = state_bytes(_zero(stage, arguments).stage, count, arguments.ranks)
    together = sum(expected.values())
    expected["peak"] = together + temporary_bytes(_zero(stage, arguments), count, arguments.ranks)
    each = {kind: f"{measured[kind] / GIGABYTE:.2f} [{expected[kind] / GIGABYTE:.2f}]" for kind in expected}
    listed = ", ".join(f"{kind} {each[kind]}" for kind in KINDS)
    total = f"{sum(measured[kind] for kind in KINDS) / GIGABYTE:.2f} [{together / GIGABYTE:.2f}]"
    rest = f"{(measured['peak'] - expected['peak']) / GIGABYTE:+.2f}"
    built = f"{measured['peak_building'] / GIGABYTE:.2f}"
    print(f"  ZeRO-{stage}: {listed}; together {total}")
    other = f"{measured['other'] / GIGABYTE:.2f}"
    print(f"          other tensors {other}; peak while built {built}, then {each['peak']}: {rest}", flush=True)
    off = {kind: abs(measured[kind] / expected[kind] - 1) for kind in expected}
    return {"measured": measured, "expected": expected, "off": off}


def _zero(stage: Any, arguments: argparse.Namespace) -> ZeroConfig:
    sizes = {"bucket_elements": arguments.bucket, "prefetch_elements": arguments.bucket}
    return ZeroConfig(stage=stage, live_elements=arguments.live, **sizes)


def _measure(stage: int, arguments: argparse.Namespace) -> dict[str, int]:
    """The bytes of the rank that holds most, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, (stage, arguments, folder), nprocs=arguments.ranks)
        told = [json.loads(path.read_text()) for path in Path(folder).glob("rank-*")]
    return max(told, key=lambda each: each["peak"])


def _rank(rank: int, stage: Any, arguments: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(arguments.ranks))
    rendezvous = torch.distributed.FileStore(f"{folder}/store", arguments.ranks)
    torch.distributed.init_process_group("gloo", store=rendezvous, rank=rank, world_size=arguments.ranks)
    context = TorchrunContext("cpu")
    zero.connect(context)  # imports DeepSpeed
    before = _status_bytes("VmRSS")
    engine: Any = DeepSpeedEngineConfig(zero=_zero(stage, arguments)).build(context, micro_batch=2, accumulation=2)
    engine.build(lambda: Layers(arguments.width, arguments.depth), _adam)
    engine.set_learning_rate(1e-4)
    building = _status_bytes("VmHWM") - before
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    batch = torch.randn(2, arguments.width)
    for _ in range(5):
        loss = engine.forward(batch)
        engine.backward(loss)
        engine.step()
        del loss
    held = sort_live_tensors(engine)
    told = held | {"peak_building": building, "peak": _status_bytes("VmHWM") - before}
    Path(folder, f"rank-{rank}").write_text(json.dumps(told))
    context.close()
    torch.distributed.destroy_process_group()


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.0)


def sort_live_tensors(engine: Any) -> dict[str, int]:
    """Bytes of this process's tensor memory by kind; memory that two tensors share counts once."""
    gc.collect()
    everything = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    everything += [tensor.grad for tensor in everything if tensor.is_leaf and tensor.grad is not None]
    model = list(engine._model.parameters())
    seen: set[int] = set()
    parameters = _claim([p.data for p in model] + [p.ds_tensor for p in model if hasattr(p, "ds_tensor")], seen)
    optimizer = _claim(_optimizer_tensors(engine), seen)
    gradients = _claim(_gradient_tensors(engine), seen)
    return {
        "parameters": parameters,
        "gradients": gradients,
        "optimizer": optimizer,
        "other": _claim(everything, seen),
    }


def _optimizer_tensors(engine: Any) -> Iterable[Tensor]:
    """Its state, and its own copies of the weights, where they are not the model's."""
    yield from (tensor for group in engine._optimizer.param_groups for tensor in group["params"])
    yield from (value for state in engine._optimizer.state.values() for value in state.values())
    yield from getattr(engine._engine.optimizer, "fp32_partitioned_groups_flat", ())  # stage 3


def _gradient_tensors(engine: Any) -> Iterable[Tensor]:
    """Of the model's parameters, wherever DeepSpeed keeps them."""
    model = list(engine._model.parameters())
    yield from (p.grad for p in model if p.grad is not None)
    yield from (p.grad_accum for p in model if getattr(p, "grad_accum", None) is not None)
    sharding = engine._engine.optimizer
    for name in ("averaged_gradients", "all_grad_tensors"):  # by group; stages 1 and 2
        yield from (tensor for group in (getattr(sharding, name, None) or {}).values() for tensor in group or ())
    for name in ("grads_in_partition", "grad_partitions_flat_buffer"):
        if getattr(sharding, name, None) is not None:
            yield getattr(sharding, name)


def _claim(tensors: Iterable[Tensor], seen: set[int]) -> int:
    """Bytes of the tensors' memory that nobody claimed before."""
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, rounds=None)
    made.add_argument("--stages", type=int, nargs="+", choices=range(4), default=[0, 1, 2, 3], help="(default: all)")
    made.add_argument("--ranks", type=positive, default=2, help="(default: 2)")
    made.add_argument("--width", type=positive, default=4096, help="of a layer (default: 4096)")
    made.add_argument("--depth", type=positive, default=12, help="layers (default: 12)")
    made.add_argument("--bucket", type=positive, default=20_000_000, help="elements of a bucket (default: 20 million)")
    text = "gathered parameters that stage 3 may keep (default: 1000 million, all of them)"
    made.add_argument("--live", type=positive, default=1_000_000_000, help=text)
    return made.parse_args()


if __name__ == "__main__":
    main()
