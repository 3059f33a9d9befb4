"""The policy server against the bare policy: latency and throughput of 1, 8 and 32 robots, with and without batching.

Robots are threads of other processes that speak openpi's protocol over loopback and ask as fast as they are answered,
with frames of 256x320. "bare" is the policy called in this process with the same frame, which no server can beat.

    python benchmarks/serving.py --store STORE --seconds 10
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
from measure import parser, positive, print_json, start

from pipelines.catalogue import load_recipe
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.inference import InferenceModel
from pipelines.publishing.instructions import Instructions
from pipelines.publishing.model_origin import ModelOrigin
from pipelines.serving.batching_config import BatchingConfig
from pipelines.serving.client import PolicyClient
from pipelines.serving.frontend import Frontend
from pipelines.serving.limits import Limits
from pipelines.serving.run import Listening, free_port, in_background
from pipelines.serving.service import PolicyService, ServiceConfig
from pipelines.training.data import training_contract
from preprocessing.store.episode_store import EpisodeStore
from rt_models.spec import ImageRecipe

HEIGHT, WIDTH = 256, 320
ROBOTS = (1, 8, 32)
CLIENTS = 4  # processes: one alone would be busier than the server


def main() -> None:
    arguments = _arguments()
    start(arguments)
    store = EpisodeStore.open(arguments.store, split="val")
    text = store.instruction_texts[0]
    results: dict[str, Any] = {"bare": bare(trained(store, arguments.recipe), text, arguments.seconds)}
    print(f"\nbare policy, one robot: p50 {results['bare']['p50_ms']:.2f} ms, p99 {results['bare']['p99_ms']:.2f} ms")
    for robots in ROBOTS:
        for name, batching in (("batched", BatchingConfig()), ("one by one", BatchingConfig(max_batch=1))):
            model = trained(store, arguments.recipe)
            results[f"{robots} {name}"] = found = served(model, text, robots, batching, arguments.seconds)
            print(
                f"{robots:3} robots, {name:10}: p50 {found['p50_ms']:8.2f} ms, p99 {found['p99_ms']:8.2f} ms, "
                f"{found['actions_per_s']:7.1f} actions/s, {found['errors']} errors, {found['grown_mib']:+.1f} MiB",
                flush=True,
            )
    most = ROBOTS[-1]
    gain = results[f"{most} batched"]["actions_per_s"] / results[f"{most} one by one"]["actions_per_s"]
    added = results["1 batched"]["p50_ms"] - results["bare"]["p50_ms"]
    print(f"added to the bare policy for one robot: {added:.2f} ms; batching {most} robots: {gain:.2f} times")
    print_json("serving", arguments, results | {"added_p50_ms": added, "batching_gain": gain})


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


def bare(model: TrainedModel, text: str, seconds: float) -> dict[str, float]:
    """The policy without a server."""
    inference = InferenceModel(model)
    policy, instruction, frame = inference.episode(model.contract.datasets[0]), inference.instruction(text), _frame(0)
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(times) < 30:
        began = time.perf_counter()
        inference.act([policy], [frame], [instruction])
        times.append(time.perf_counter() - began)
    return _percentiles(times[10:])


def served(model: TrainedModel, text: str, robots: int, batching: BatchingConfig, seconds: float) -> dict[str, float]:
    """So many robots for so many seconds."""
    limits = Limits(max_rate_hz=1e6, late_ms=60_000)
    frontend = Frontend(service=PolicyService(model, ServiceConfig(limits=limits, batching=batching)))
    listening = Listening(port=free_port())
    processes = min(robots, CLIENTS)
    shares = [len(range(number, robots, processes)) for number in range(processes)]
    with in_background(frontend, listening):
        before = psutil.Process().memory_info().rss
        began = time.perf_counter()
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            asked = [(listening.url("ws"), text, share, seconds) for share in shares]
            parts = pool.starmap(ask_as_robots, asked)
        grown = psutil.Process().memory_info().rss - before
        assert time.perf_counter() - began >= seconds
    times = [one for part, _, _ in parts for one in part]
    return _percentiles(times) | {
        "actions_per_s": sum(rate for _, rate, _ in parts),
        "errors": sum(errors for _, _, errors in parts),
        "grown_mib": grown / 2**20,
    }


def ask_as_robots(url: str, text: str, robots: int, seconds: float) -> tuple[list[float], float, int]:
    """(seconds of each answer, answers per second, errors) of the robots of one process, after a second of warming."""
    begin = threading.Barrier(robots)

    def robot(number: int) -> tuple[list[float], int]:
        times: list[float] = []
        errors = 0
        with PolicyClient(url) as client:
            observation = {"image": _frame(number), "prompt": text}
            begin.wait(120)
            warm = time.perf_counter() + 1
            while time.perf_counter() < warm + seconds:
                began = time.perf_counter()
                try:
                    client.infer(observation)
                except ValueError:
                    errors += 1
                if began >= warm:
                    times.append(time.perf_counter() - began)
        return times, errors

    with ThreadPoolExecutor(robots) as threads:
        parts = list(threads.map(robot, range(robots)))
    times = [one for part, _ in parts for one in part]
    return times, len(times) / seconds, sum(errors for _, errors in parts)


def _frame(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def _percentiles(times: Sequence[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {"p50_ms": 1e3 * statistics.median(ordered), "p99_ms": 1e3 * ordered[int(0.99 * (len(ordered) - 1))]}


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, rounds=None)
    made.add_argument("--store", required=True, help="a store of robot episodes, for a contract and its instructions")
    made.add_argument("--recipe", default="rt1_tiny", help="recipe of the model (default: rt1_tiny)")
    made.add_argument("--seconds", type=positive, default=10, help="of each measurement (default: 10)")
    return made.parse_args()


if __name__ == "__main__":
    main()
