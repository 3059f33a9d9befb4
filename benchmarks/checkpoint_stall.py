"""How long training stands still for a checkpoint: written while it waits, or copied to memory and written beside it.

Two Ray workers train the same model from the same batches; every so many steps a checkpoint is published, synchronously
on one side (`CheckpointFolder.save`) and in the background on the other (`BackgroundSaver`, as the training loop does),
in turn, round after round. The stall is the time of the call that saves; `beside` is how much longer the steps after it
take than steps without, since what writes takes processor time from what trains.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from engine_overhead import Blocks, blocks_batch
from measure import parser, positive, print_json, ratio, start

from cluster.background import BackgroundSaver
from cluster.context import WorkerContext
from cluster.engine import DeepSpeedEngineConfig
from cluster.launch import RayLaunch, launch
from cluster.storage import CheckpointFolder
from cluster.zero import ZeroConfig

SIDES = ("synchronous", "asynchronous")


def main() -> None:
    arguments = _arguments()
    start(arguments)
    results: dict[int, Any] = {}
    for stage in arguments.stages:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            config = {**vars(arguments), "stage": stage, "folder": folder}
            results[stage] = launch(measure, config, RayLaunch(num_workers=arguments.ranks))
        _print(stage, results[stage])
    print_json("checkpoint_stall", arguments, results)


def _print(stage: int, result: dict[str, Any]) -> None:
    stall, slower = result["stall"], result["slower"]
    less = ratio(stall["synchronous"], stall["asynchronous"])
    print(
        f"\nZeRO-{stage}: {result['megabytes']:.0f} MB a checkpoint, a step without takes {result['step'] * 1e3:.0f} ms"
    )
    for side in SIDES:
        print(
            f"  {side:12} stall {statistics.median(stall[side]) * 1e3:6.0f} ms, the steps after it together "
            f"{statistics.median(slower[side]) * 1e3:6.0f} ms longer"
        )
    print(f"  the synchronous stall is {less} times the asynchronous one", flush=True)


def measure(context: WorkerContext, config: dict[str, Any]) -> dict[str, Any]:
    """What one worker runs; the times of its rank 0 come back."""
    size, width = 128, config["width"]
    torch.manual_seed(0)
    engine = DeepSpeedEngineConfig(zero=ZeroConfig(stage=config["stage"])).build(
        context, micro_batch=size, accumulation=1
    )
    engine.build(lambda: Blocks(width), lambda m: torch.optim.AdamW(m.parameters(), lr=1e-4))
    inputs = blocks_batch(size, width)
    folders = {side: CheckpointFolder(Path(config["folder"], side)) for side in SIDES}
    saver = BackgroundSaver(folders["asynchronous"], context)

    def steps() -> float:
        began = time.perf_counter()
        for _ in range(config["steps"]):
            engine.backward(engine.forward(inputs))
            engine.step()
        context.barrier()
        return time.perf_counter() - began

    def save(side: str, number: int) -> float:
        began = time.perf_counter()
        if side == "synchronous":
            folders[side].save(number, engine.save, context, {}, 1)
        else:
            saver.save(number, engine.snapshot(), {}, 1)
        return time.perf_counter() - began

    stall, slower, alone = _rounds(config["rounds"], steps, save, saver.wait)
    saver.close()
    latest = folders["synchronous"].latest()
    assert latest is not None
    megabytes = sum(entry.size for entry in latest.manifest.files) / 1e6
    return {"stall": stall, "slower": slower, "step": alone / config["steps"], "megabytes": megabytes}


def _rounds(
    rounds: int, steps: Callable[[], float], save: Callable[[str, int], float], wait: Callable[[], None]
) -> tuple[dict[str, list[float]], dict[str, list[float]], float]:
    """(seconds of the saving call, seconds that the steps after it took longer), by side, and of steps alone."""
    stall: dict[str, list[float]] = {side: [] for side in SIDES}
    slower: dict[str, list[float]] = {side: [] for side in SIDES}
    undisturbed = []
    for number in range(rounds + 1):
        for side in SIDES if number % 2 else SIDES[::-1]:
            alone = steps()
            stalled = save(side, number + 1)
            after = steps()
            wait()
            if number:  # the first round is not counted
                undisturbed.append(alone)
                stall[side].append(stalled)
                slower[side].append(after - alone)
    return stall, slower, statistics.median(undisturbed)


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, rounds=7)
    made.add_argument("--stages", type=int, nargs="+", choices=range(4), default=[1, 3], help="ZeRO (default: 1 3)")
    made.add_argument("--ranks", type=positive, default=2, help="workers (default: 2)")
    made.add_argument("--width", type=positive, default=1400, help="of a layer; 1400 is 35 M parameters (default)")
    made.add_argument("--steps", type=positive, default=4, help="optimizer steps after each checkpoint (default: 4)")
    made.add_argument("--folder", help="where to write the checkpoints (default: the folder for temporary files)")
    return made.parse_args()


if __name__ == "__main__":
    main()
