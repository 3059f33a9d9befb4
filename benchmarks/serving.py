"""The policy server against the bare policy: latency and throughput of 1, 8 and 32 robots, with and without batching.

The server runs in a process of its own. Robots (`serving_robots.py`) speak openpi's protocol over loopback and ask as
fast as they are answered, with frames of 256x320. "bare" is the policy called in this process with the same frame, for
1 and for 32 robots at once, which no server can beat. "one by one" is the same server with --max-batch 1.

    python benchmarks/serving.py --store STORE --seconds 8 --threads 1
    python benchmarks/serving.py --store STORE --minutes 10 --rate-hz 3     memory of the server, 32 robots
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psutil
import torch
from measure import parser, positive, print_json, start
from serving_robots import Crew, frame

from pipelines.catalogue import load_recipe
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.inference import InferenceModel
from pipelines.publishing.instructions import Instructions
from pipelines.publishing.model_origin import ModelOrigin
from pipelines.serving.batching_config import BatchingConfig
from pipelines.serving.frontend import Frontend
from pipelines.serving.limits import Limits
from pipelines.serving.run import Listening, free_port, serve
from pipelines.serving.service import PolicyService, ServiceConfig
from pipelines.training.data import training_contract
from preprocessing.store.episode_store import EpisodeStore
from rt_models.spec import ImageRecipe

HEIGHT, WIDTH = 256, 320
ROBOTS = (1, 8, 32)
CREWS = 2  # processes of robots
_WARM_S = 1.0  # that robots ask before it counts
SPAWN = multiprocessing.get_context("spawn")
SIDES = (("batched", BatchingConfig()), ("one by one", BatchingConfig(max_batch=1)))


def main() -> None:
    arguments = _arguments()
    start(arguments)
    store = EpisodeStore.open(arguments.store, split="val")
    text = store.instruction_texts[0]
    if arguments.minutes:
        results = memory(arguments, text)
    else:
        results = speed(arguments, store, text)
    print_json("serving", arguments, results)


def speed(arguments: argparse.Namespace, store: EpisodeStore, text: str) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for robots in (1, ROBOTS[-1]):
        alone = bare(trained(store, arguments.recipe), text, robots, arguments.seconds / 2)
        results[f"bare {robots}"] = alone
        print(f"bare policy, {robots:2} at once: p50 {alone['p50_ms']:.2f} ms, p99 {alone['p99_ms']:.2f} ms")
    for robots in ROBOTS:
        for name, batching in SIDES:
            results[f"{robots} {name}"] = found = served(arguments, text, robots, batching)
            print(
                f"{robots:3} robots, {name:10}: p50 {found['p50_ms']:7.2f} ms, p99 {found['p99_ms']:7.2f} ms, "
                f"{found['actions_per_s']:6.1f} actions/s, server {found['server_cpu']:.2f} cores, "
                f"{found['errors']} errors, {found['lost']} lost",
                flush=True,
            )
    most = ROBOTS[-1]
    gain = results[f"{most} batched"]["actions_per_s"] / results[f"{most} one by one"]["actions_per_s"]
    added = results["1 batched"]["p50_ms"] - results["bare 1"]["p50_ms"]
    print(f"added to the bare policy for one robot: {added:.2f} ms; batching {most} robots: {gain:.2f} times")
    return results | {"added_p50_ms": added, "batching_gain": gain}


def memory(arguments: argparse.Namespace, text: str) -> dict[str, Any]:
    """RSS of the server every ten seconds while the most robots ask at `rate_hz`."""
    samples: list[tuple[float, float]] = []
    with server(arguments, BatchingConfig()) as (url, process):
        crew, begins, seconds = Crew(url, text, ROBOTS[-1]), time.time(), 60 * arguments.minutes
        crew.begin(at=begins, seconds=seconds, rate_hz=arguments.rate_hz)
        while time.time() < begins + seconds:
            time.sleep(10)
            samples.append((time.time() - begins, process.memory_info().rss / 2**20))
            print(f"{samples[-1][0]:6.0f} s  {samples[-1][1]:7.1f} MiB", flush=True)
        asked = crew.asked()
    after_a_minute = next(rss for at, rss in samples if at >= 60)
    print(f"{len(asked.seconds)} answers, {asked.errors} errors, {asked.lost} connections lost")
    print(f"RSS {after_a_minute:.1f} MiB after a minute, {samples[-1][1]:.1f} MiB at the end")
    counts = {"answers": len(asked.seconds), "errors": asked.errors, "lost": asked.lost}
    return _percentiles(asked.seconds) | counts | {"rss": samples}


def trained(store: EpisodeStore, recipe: str) -> TrainedModel:
    """An untrained model of the recipe that expects frames of 256x320."""
    experiment = load_recipe(recipe)
    contract = training_contract(experiment, [store])
    contract = replace(contract, image=ImageRecipe(camera="image", height=HEIGHT, width=WIDTH))
    return TrainedModel(
        model=experiment.model.build().eval(),
        contract=contract,
        step=0,
        source=recipe,
        origin=ModelOrigin(),
        instructions=Instructions.of_stores(contract.encoder, [store]),
    )


def bare(model: TrainedModel, text: str, robots: int, seconds: float) -> dict[str, float]:
    """The policy without a server."""
    inference = InferenceModel(model)
    policies = [inference.episode(model.contract.datasets[0]) for _ in range(robots)]
    frames, told = [frame(number) for number in range(robots)], [inference.instruction(text)] * robots
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(times) < 30:
        began = time.perf_counter()
        inference.act(policies, frames, told)
        times.append(time.perf_counter() - began)
    return _percentiles(times[10:])


def served(arguments: argparse.Namespace, text: str, robots: int, batching: BatchingConfig) -> dict[str, float]:
    """So many robots, as fast as they are answered."""
    shares = [len(range(number, robots, CREWS)) for number in range(min(robots, CREWS))]
    with server(arguments, batching) as (url, process):
        crews = [Crew(url, text, share) for share in shares]
        begins = time.time() + _WARM_S
        for crew in crews:
            crew.begin(at=begins, seconds=arguments.seconds, rate_hz=0)
        time.sleep(_WARM_S)
        before = sum(process.cpu_times()[:2])
        time.sleep(arguments.seconds)
        busy = (sum(process.cpu_times()[:2]) - before) / arguments.seconds
        parts = [crew.asked() for crew in crews]
    times = [one for part in parts for one in part.seconds]
    return _percentiles(times) | {
        "actions_per_s": len(times) / arguments.seconds,
        "errors": sum(part.errors for part in parts),
        "lost": sum(part.lost for part in parts),
        "server_cpu": busy,
    }


@contextmanager
def server(arguments: argparse.Namespace, batching: BatchingConfig) -> Iterator[tuple[str, psutil.Process]]:
    """(address, process) of a server that is ready."""
    port, (told, tell) = free_port(), SPAWN.Pipe(duplex=False)
    running = SPAWN.Process(target=run_server, args=(vars(arguments), batching, port, tell))
    running.start()
    assert told.recv() == "ready"
    try:
        yield f"ws://127.0.0.1:{port}", psutil.Process(running.pid)
    finally:
        running.terminate()
        running.join()


def run_server(arguments: dict[str, Any], batching: BatchingConfig, port: int, tell: Any) -> None:
    """As `rtp serve` does it."""
    torch.set_num_threads(arguments["threads"])
    store = EpisodeStore.open(arguments["store"], split="val")
    limits = Limits(max_rate_hz=1e6, late_ms=60_000)
    service = PolicyService(trained(store, arguments["recipe"]), ServiceConfig(limits=limits, batching=batching))
    serve(Frontend(service=service), Listening(port=port), on_ready=lambda: tell.send("ready"))


def _percentiles(times: Sequence[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {"p50_ms": 1e3 * statistics.median(ordered), "p99_ms": 1e3 * ordered[int(0.99 * (len(ordered) - 1))]}


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, rounds=None)
    made.add_argument("--store", required=True, help="a store of robot episodes, for a contract and its instructions")
    made.add_argument("--recipe", default="rt1_tiny", help="recipe of the model (default: rt1_tiny)")
    made.add_argument("--seconds", type=positive, default=8, help="of each measurement (default: 8)")
    made.add_argument("--minutes", type=positive, help="watch the server's memory for so long instead")
    made.add_argument(
        "--rate-hz", type=float, default=3.0, help="with --minutes: actions a second of a robot (default: 3)"
    )
    return made.parse_args()


if __name__ == "__main__":
    main()
