"""Frames/s of one worker's loader and the CPU seconds that it costs the worker's own process: local or remote readers.

    python benchmarks/remote_readers.py FOLDER

The sides read the same first batches of the same order, in segments of 12 windows and as plain windows of 6 frames,
from the store of loader_store.py (256x320 JPEG frames of 35 KB). `local` decodes in this process with one thread and
with two, `remote` in 1, 2 and 4 actors of one core each. All share this machine's cores, so that frames/s cannot grow
beyond what its cores decode; what the figures say of a cluster is the worker's own cost of a frame, and the overhead of
an actor. `decodes` counts decoded frames over frames handed out: more actors decode shared frames more often.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from loader_store import open_store
from loader_throughput import same
from measure import machine, positive

from cluster.remote_workers import RemoteWorkers
from cluster.session import RaySession, connect
from pipelines.training.remote_reader import Arrays, RemoteReader
from preprocessing.loading.loader import Loader, LoaderConfig, Reader, WindowReader
from preprocessing.store.episode_store import EpisodeStore

SIDES = {"local 1": 0, "local 2": 0, "remote 1": 1, "remote 2": 2, "remote 4": 4}
_MEMORY_MB = 768  # of each reader
_FIRST = 4  # batches of a pass that are not timed
BATCHES = {"segments of 12": {"segment_windows": 12, "micro_batch": 96}, "plain windows": {"micro_batch": 32}}


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("root", type=Path, help="folder for the store")
    made.add_argument("--episodes", type=positive, default=200, help="of 41 steps each (default: 200)")
    made.add_argument("--batches", type=positive, default=20, help="timed in a pass of a side (default: 20)")
    made.add_argument("--rounds", type=positive, default=3)
    arguments = made.parse_args()
    root = str(open_store(arguments.root, arguments.episodes).root)
    print("; ".join(f"{key} {value}" for key, value in machine().items()), flush=True)
    results: dict[str, Any] = {}
    with connect(RaySession(num_cpus=8, object_store_mb=1000)), ExitStack() as stack:
        readers = {side: stack.enter_context(opened(root, side)) for side in SIDES}
        for batches, settings in BATCHES.items():
            rounds = [
                {side: measured(*readers[side], settings, arguments.batches, number) for side in SIDES}
                for number in range(arguments.rounds)
            ]
            results[batches] = {side: medians([each[side] for each in rounds]) for side in SIDES}
            for side, found in results[batches].items():
                print(f"{batches}, {side}: {', '.join(f'{k} {v:.3g}' for k, v in found.items())}", flush=True)
    print(json.dumps({"benchmark": "remote_readers", "machine": machine(), "results": results}))


def measured(
    reader: Reader, decodes: Callable[[], int], settings: dict[str, int], count: int, number: int
) -> dict[str, float]:
    """A side's pass number `number`, over batches that no earlier pass has read."""
    order = {"seed": 0, "lanes": 48, "global_batch": 192, **settings}
    windows = -(-(count + _FIRST) * settings["micro_batch"] // 192) * 192
    loader = Loader(reader, **order, position=number * windows)  # type: ignore[arg-type]
    frames = 0
    with closing(iter(loader)) as batches:  # type: ignore[type-var]
        for _ in range(_FIRST):
            next(batches)
        before, began, cpu_began = decodes(), time.perf_counter(), time.process_time()
        for batch in itertools.islice(batches, count):
            frames += len(batch["frames"])
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        decoded = decodes() - before
    return {"frames/s": frames / seconds, "own CPU ms/frame": 1000 * cpu_s / frames, "decodes": decoded / frames}


@contextmanager
def opened(root: str, side: str) -> Iterator[tuple[Reader, Callable[[], int]]]:
    """The reader of a side, and how many frames have been decoded for it."""
    threads = int(side[-1]) if side.startswith("local") else 1
    config = LoaderConfig(decode_threads=threads, remote_readers=max(SIDES[side], 1), memory_mb=_MEMORY_MB)
    local = WindowReader([EpisodeStore.open(root)], [same()], num_steps=6, config=config)
    if not SIDES[side]:
        with closing(local):
            yield local, lambda: local.decodes
        return
    workers: RemoteWorkers[..., Arrays] = RemoteWorkers(partial(_reads, root), count=SIDES[side], cpus=1)
    counts: dict[int, int] = {}

    class Counted(RemoteReader):
        def _received(self, arrays: Arrays) -> dict[str, Any]:
            own = dict(arrays)
            pid, decoded = own.pop("count").tolist()
            counts[pid] = max(decoded, counts.get(pid, 0))
            return super()._received(own)

    with closing(local), closing(Counted(local, workers)) as reader:
        yield reader, lambda: sum(counts.values())


def _reads(root: str) -> Callable[..., Arrays]:
    """In an actor: batches as the pipeline's actors send them, with (process, frames decoded so far)."""
    config = LoaderConfig(decode_threads=1, memory_mb=_MEMORY_MB)
    reader = WindowReader([EpisodeStore.open(root)], [same()], num_steps=6, config=config)

    def read(*arguments: np.ndarray) -> Arrays:
        own = [array.copy() for array in arguments]
        arrays = {name: tensor.numpy() for name, tensor in reader.read(*own).items()}
        return arrays | {"count": np.array([os.getpid(), reader.decodes])}

    return read


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


if __name__ == "__main__":
    main()
