"""What a large run needs, on paper: the tables of docs/scaling.md, from measured figures and the formulas below.

    python benchmarks/scaling.py              # the tables, as they stand in docs/scaling.md
    python benchmarks/scaling.py --measure    # what one task, one actor and one shard cost a driver and a head, here

Every measured figure that goes in is of docs/measured.md, or names its source. Nothing here has been run at that size.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
METADATA = REPOSITORY / "tests/data/openx_metadata"
HOUR_S = 3600.0

# --- preprocessing ---

STEPS_PER_CORE_S = 0.31 * 9784  # frames read through to their ends, files in memory (measured.md, Data)
BYTES_PER_STEP = 35_000  # of that measurement
NODE_NETWORK = 1.25e9  # bytes/s: 10 Gb/s


@dataclass(frozen=True, kw_only=True)
class Source:
    """A split's size by its dataset_info.json."""

    name: str
    size: int
    episodes: int
    shards: int


def sources() -> list[Source]:
    """All splits of the datasets of Open X-Embodiment whose metadata are at hand."""
    found = []
    for path in sorted(METADATA.glob("*/*/dataset_info.json")):
        for split in json.loads(path.read_text())["splits"]:
            lengths = [int(length) for length in split["shardLengths"]]
            size = int(split["numBytes"])
            found.append(
                Source(name=path.parts[-3], size=size, episodes=sum(lengths), shards=len(lengths)),
            )
    return found


def preprocessing(nodes: int, cores: int, found: Sequence[Source]) -> tuple[float, float]:
    """(hours by the cores, hours by the network): each byte comes in once and goes out once, at the same time."""
    size = sum(source.size for source in found)
    rate = STEPS_PER_CORE_S * BYTES_PER_STEP
    return size / (rate * nodes * cores) / HOUR_S, size / (NODE_NETWORK * nodes) / HOUR_S


def preprocessing_rows() -> Iterator[list[str]]:
    found = sources()
    without = [source for source in found if source.name != "mt_opt_rlds"]
    for label, chosen in (("all", found), ("all but MT-Opt", without)):
        size, shards = sum(s.size for s in chosen), sum(s.shards for s in chosen)
        for nodes, cores in ((1, 16), (4, 16), (16, 32)):
            by_cpu, by_network = preprocessing(nodes, cores, chosen)
            yield [
                label,
                f"{size / 1e12:.2f} TB, {shards:,} shards",
                f"{nodes} x {cores} cores",
                f"{by_cpu:.2f} h",
                f"{by_network:.2f} h",
            ]


# --- training ---


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model's training step on one H200, as measured, or scaled from one that was."""

    name: str
    parameters: float
    micro_batch: int
    seconds: float
    """Of forward and backward of a micro-batch."""
    accumulation: int
    """Micro-batches of a rank to an optimizer step."""
    origin: str


MODELS = (
    Model(
        name="RT-1, 35 M",
        parameters=35.1e6,
        micro_batch=96,
        seconds=96 / 577,
        accumulation=1,
        origin="measured: 96 windows in segments of 12",
    ),
    Model(
        name="RT-2, 3 B",
        parameters=2.92e9,
        micro_batch=16,
        seconds=0.275,
        accumulation=4,
        origin="measured: PaliGemma-3B, full tuning, 282 positions",
    ),
    Model(
        name="RT-2, 7 B",
        parameters=7.0e9,
        micro_batch=16,
        seconds=0.275 * 7.0 / 2.92,
        accumulation=4,
        origin="scaled from 3 B by parameters",
    ),
)
GRADIENT_BYTES = 4  # weights and gradients are float32 under autocast
ADAM_BYTES = 16  # with two moments; weights and gradients included
LINKS = {"400 Gb/s": 50e9, "100 Gb/s": 12.5e9, "10 Gb/s": 1.25e9}


def exchanged(model: Model, stage: int, ranks: int) -> float:
    """Bytes that a rank sends in an optimizer step (Rajbhandari et al., ZeRO, section 7; ring algorithms).

    Stages 0 and 1 exchange gradients once per step, stage 2 reduces them after every micro-batch, stage 3 also gathers
    the weights before every forward and every backward pass.
    """
    whole = model.parameters * GRADIENT_BYTES * (ranks - 1) / ranks
    rounds = {0: 2, 1: 2, 2: model.accumulation + 1, 3: 3 * model.accumulation}[stage]
    return rounds * whole


def rank_memory(model: Model, stage: int, ranks: int) -> float:
    """Bytes of weights, gradients and Adam's moments of a rank; activations come on top."""
    split = {0: 0, 1: 8, 2: 12, 3: 16}[stage]
    return model.parameters * ((ADAM_BYTES - split) + split / ranks)


def communication_rows() -> Iterator[list[str]]:
    ranks = 64
    for model in MODELS:
        step_s = model.seconds * model.accumulation
        for stage in range(4):
            size = exchanged(model, stage, ranks)
            shares = [f"{100 * size / link / step_s:.0f} %" for link in LINKS.values()]
            memory = rank_memory(model, stage, ranks)
            yield [model.name, str(stage), f"{memory / 1e9:.1f} GB", f"{size / 1e9:.2f} GB", f"{step_s:.2f} s", *shares]


FRAME_JPEG, FRAME_PIXELS = 30_000, 256 * 320 * 3  # bytes: RT-1's own frames, stored and decoded
CORE_FRAMES_S = (
    0.68 * 2928
)  # the loader's frames/s of one core (measured.md, Data: distinct frames against bare decoding)
GPU_FRAMES_S = {
    "RT-1, our kernels": 577 * 136 / 96,
    "RT-1, as one CUDA graph": 1110 * 136 / 96,
    # The bytes of a step in 8 segments of 12, 136 images, at the memory rate: 32 ms (measured.md, On one GPU)
    "RT-1 at the roof of memory traffic": 136 / 0.0321,
    "RT-2, 3 B, one frame a sample": 58.0,
    "RT-2, 7 B, one frame a sample": 58.0 * 2.92 / 7.0,
}
GPUS_PER_NODE = 8


def loader_rows() -> Iterator[list[str]]:
    for name, frames in GPU_FRAMES_S.items():
        node = frames * GPUS_PER_NODE
        yield [
            name,
            f"{frames:,.0f}",
            f"{frames / CORE_FRAMES_S:.2f}",
            f"{node * FRAME_JPEG / 1e6:,.0f} MB/s",
            f"{node * FRAME_PIXELS / 1e9:.2f} GB/s",
            f"{8 * node * FRAME_PIXELS / 1e9:.0f} Gb/s",
        ]


def checkpoint_rows() -> Iterator[list[str]]:
    """12 bytes a parameter: weights and two moments, each rank its share, so many nodes at 1 GB/s each."""
    for model in MODELS:
        size = 12 * model.parameters
        for nodes in (1, 8):
            wait_s = size / (nodes * GPUS_PER_NODE) / 20e9
            yield [
                model.name,
                f"{size / 1e9:.1f} GB",
                str(nodes),
                f"{wait_s:.2f} s",
                f"{size / nodes / 1e9:.1f} s",
            ]


MEASURED_MS = {  # CPU milliseconds of (driver, head), by --measure on two busy cores of an AMD EPYC, 2026-11-28
    "a task": (0.39, 0.085),
    "an actor started": (7.5, 17.5),
    "an actor asked how it is": (0.34, 0.02),
    "a shard converted": (7.0, 0.085),  # the head's part is that of a task
}
POLL_S = 2.0  # Ray Train asks every worker so often


def head_rows() -> Iterator[list[str]]:
    def cells(name: str, count: int) -> list[str]:
        return [f"{milliseconds * count / 1000:.1f} s" for milliseconds in MEASURED_MS[name]]

    asked = MEASURED_MS["an actor asked how it is"]
    polled = [f"{100 * 1000 * ms / 1000 / POLL_S:.0f} % of a core" for ms in asked]
    measured = {name: [f"{ms:g} ms" for ms in both] for name, both in MEASURED_MS.items()}
    yield ["100,000 tasks", *measured["a task"], *cells("a task", 100_000)]
    yield ["1,000 workers started", *measured["an actor started"], *cells("an actor started", 1000)]
    yield ["1,000 workers asked every 2 s", *measured["an actor asked how it is"], *polled]
    yield ["100,000 shards converted", *measured["a shard converted"], *cells("a shard converted", 100_000)]


# --- the tables ---

TABLES: dict[str, tuple[list[str], Callable[[], Iterator[list[str]]]]] = {
    "preprocessing": (["sets", "source", "nodes", "by the cores", "by 10 Gb/s per node"], preprocessing_rows),
    "communication": (
        ["model", "ZeRO", "state of a rank", "sent per step", "compute per step", *LINKS],
        communication_rows,
    ),
    "loader": (
        ["", "frames/s per GPU", "cores per GPU", "JPEG per node", "pixels per node", "as a link"],
        loader_rows,
    ),
    "head": (["", "driver, for one", "head, for one", "driver, for all", "head, for all"], head_rows),
    "checkpoint": (["model", "checkpoint", "nodes of 8", "training waits", "written after"], checkpoint_rows),
}


def table(name: str) -> str:
    """Of Markdown."""
    head, rows = TABLES[name]
    lines = [head, ["---"] * len(head), *rows()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


# --- measured here ---


def measure(tasks: int, actors: int, shards: int) -> dict[str, Any]:
    """CPU and wall milliseconds of a driver and of Ray's head (its GCS) for one task, one actor and one call of it."""
    import psutil
    import ray

    from cluster.session import RaySession, connect

    with connect(RaySession(num_cpus=2 * actors)):
        gcs = next(p for p in psutil.process_iter(["name"]) if p.info["name"] == "gcs_server" and _is_ours(p))

        def costs(work: Callable[[], object], count: int) -> dict[str, float]:
            began, own, head = time.perf_counter(), time.process_time(), sum(gcs.cpu_times()[:2])
            work()
            seconds = time.perf_counter() - began
            return {
                "wall_ms": 1000 * seconds / count,
                "driver_cpu_ms": 1000 * (time.process_time() - own) / count,
                "head_cpu_ms": 1000 * (sum(gcs.cpu_times()[:2]) - head) / count,
            }

        class Idle:
            def poll(self) -> int:
                return 0

        nothing: Any = ray.remote(num_cpus=1)(lambda: None)
        actor: Any = ray.remote(num_cpus=1)(Idle)
        ray.get([nothing.remote() for _ in range(20)])
        started: list[Any] = []

        def start() -> None:
            started.extend(actor.remote() for _ in range(actors))
            ray.get([each.poll.remote() for each in started])

        return {
            "task": costs(lambda: ray.get([nothing.remote() for _ in range(tasks)]), tasks),
            "actor started": costs(start, actors),
            "actor polled": costs(
                lambda: [ray.get([a.poll.remote() for a in started]) for _ in range(50)], 50 * actors
            ),
            "shard converted": {"driver_cpu_ms": shard_cost(shards)},
        }


def _is_ours(process: Any) -> bool:
    import os

    return any(parent.pid == os.getpid() for parent in process.parents())


def shard_cost(shards: int) -> float:
    """Driver's CPU milliseconds of a shard of a conversion by Ray: a dataset of one-episode shards, driver alone."""
    import tempfile

    from preprocess_data import NAME, VERSION, write_dataset

    from preprocessing.convert import ConvertConfig, convert

    with tempfile.TemporaryDirectory(prefix="scaling-") as scratch:
        write_dataset(Path(scratch, "rlds"), num_episodes=shards, num_steps=1, num_shards=shards, size=(16, 16))
        source = str(Path(scratch, "rlds", NAME, VERSION))
        spent = []
        for limit in (shards // 10, shards):
            began = time.process_time()
            config = ConvertConfig(split="train", encoder="dataset", limit=limit)
            convert(source, f"{scratch}/{limit}", config)
            spent.append(time.process_time() - began)
    return 1000 * (spent[1] - spent[0]) / (shards - shards // 10)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--measure", action="store_true")
    made.add_argument("--tasks", type=int, default=2000)
    made.add_argument("--actors", type=int, default=12)
    made.add_argument("--shards", type=int, default=400)
    arguments = made.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.tasks, arguments.actors, arguments.shards), indent=1))
        return
    for name in TABLES:
        print(f"{name}\n\n{table(name)}")


if __name__ == "__main__":
    main()
