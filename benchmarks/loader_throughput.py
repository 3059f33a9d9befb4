"""Windows of 6 frames of 256x320 per second, globally shuffled: ours against bare JPEG decoding and other loaders.

    python benchmarks/loader_throughput.py FOLDER --parts bare
    python benchmarks/loader_throughput.py FOLDER --parts opponents --packages PACKAGES --octo OCTO DLIMP

`bare`: full passes over the store of loader_store.py, each with bare decoding before and after it: the same JPEGs,
read the same way, decoded once each in a loop with the same decoder, in as many threads as there are cores. The figure
is frames of the store per second of a pass, as a part of bare decoding's; on a machine that others use too, the part by
CPU seconds of the process says more. `opponents`: windows per second, round after round, ours first; mosaicml-streaming
with the best number of workers, Octo's and rt1-pytorch's tf.data paths with AUTOTUNE.

Every measurement is a process of its own that may use only so many cores.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import loader_opponents
from loader_store import open_store, rlds_folder
from measure import parser, print_json, ratio

BATCH = 32
BARE_FRAMES = 2400  # no more than a shard has
FRAMES = ("pool", "distinct", "windows")


def main() -> None:
    made = parser(__doc__, rounds=3)
    made.add_argument("root", type=Path, help="folder for the store, about 2 GB")
    made.add_argument("--parts", nargs="+", choices=["bare", "opponents"], default=["bare", "opponents"])
    made.add_argument("--cores", nargs="+", type=int, default=[1, 2])
    made.add_argument("--memory-mb", type=int, default=1536)
    made.add_argument("--seconds", type=float, default=8.0, help="of one opponent's measurement")
    made.add_argument("--packages", type=Path, help="folder with mosaicml-streaming and torchvision")
    made.add_argument("--octo", type=Path, nargs=2, help="checkouts of octo-models/octo and kvablack/dlimp")
    made.add_argument("--child", help="what this process is to measure (set by the benchmark itself)")
    arguments = made.parse_args()
    if arguments.child:
        print(json.dumps(CHILDREN[arguments.child.partition(":")[0]](arguments, arguments.child.partition(":")[2])))
        return
    store = open_store(arguments.root)
    print(f"{store.num_steps} frames, {store.contract.image}", flush=True)
    results: dict[str, Any] = {}
    for cores in arguments.cores:
        if "bare" in arguments.parts:
            results[f"bare_{cores}"] = against_bare(arguments, cores)
        if "opponents" in arguments.parts:
            results[f"opponents_{cores}"] = against_opponents(arguments, cores)
    print_json("loader_throughput", arguments, results)


# --- Against bare decoding ---


def against_bare(arguments: Any, cores: int) -> dict[str, Any]:
    results = {}
    for frames in FRAMES:
        found = child(arguments, f"passes:{frames}", cores)
        share = ratio(found["shares"], [1.0] * len(found["shares"]))
        print(
            f"{cores} core(s), frames={frames:<9} {found['frames_per_s']:6.0f} frames/s, {share} of bare decoding by "
            f"the clock, {statistics.median(found['cpu_shares']):.2f} by CPU seconds; "
            f"decodes per frame {found['decodes']:.3f}; first batch {found['first_batch_s']:.2f} s; RSS above the "
            f"imports {', '.join(f'{mb:.0f}' for mb in found['grown_mb'])} MB (budget {arguments.memory_mb})",
            flush=True,
        )
        results[frames] = found | {"share": share.to_json()}
    return results


def measure_passes(arguments: Any, frames: str) -> dict[str, Any]:
    """Passes over the store with bare decoding around each."""
    from preprocessing.loading.loader import LoaderConfig, WindowReader

    before_mb = rss_mb()
    began = time.perf_counter()
    store = open_store(arguments.root)
    threads = len(os.sched_getaffinity(0))
    config = LoaderConfig(frames=frames, decode_threads=threads, memory_mb=arguments.memory_mb)  # type: ignore[arg-type]
    reader = WindowReader([store], [same()], num_steps=6, config=config)
    rows = reader.index.num_rows
    bare, seconds, cpu_s, bare_cpu_s, grown = [], [], [], [], []
    with closing(reader), closing(our_batches(reader)) as batches:
        next(batches)
        first_batch_s = time.perf_counter() - began
        decodes = reader.decodes
        for _ in range(arguments.rounds):
            cpu_began = time.process_time()
            bare.append(bare_frames_per_s(store, threads))
            bare_cpu_s.append((time.process_time() - cpu_began) / BARE_FRAMES)
            began, cpu_began = time.perf_counter(), time.process_time()
            for _ in itertools.islice(batches, rows // BATCH):
                pass
            seconds.append(time.perf_counter() - began)
            cpu_s.append((time.process_time() - cpu_began) / (rows // BATCH * BATCH))
            grown.append(rss_mb() - before_mb)
        decodes = (reader.decodes - decodes) / (arguments.rounds * (rows // BATCH) * BATCH)
    bare.append(bare_frames_per_s(store, threads))
    rates = [rows // BATCH * BATCH / each for each in seconds]
    around = [(a + b) / 2 for a, b in itertools.pairwise(bare)]
    return {
        "frames_per_s": statistics.median(rates),
        "bare_frames_per_s": statistics.median(bare),
        "shares": [rate / limit for rate, limit in zip(rates, around, strict=True)],
        "cpu_shares": [b / a for a, b in zip(cpu_s, bare_cpu_s, strict=True)],
        "decodes": decodes,
        "first_batch_s": first_batch_s,
        "grown_mb": grown,
    }


def bare_frames_per_s(store: Any, threads: int) -> float:
    """Read row groups and decode their frames once each, in all about BARE_FRAMES."""
    from preprocessing.store.images import decode_image

    def decode(shard: int) -> int:
        count = 0
        for group in range(-(-store.shards[shard].rows // store.shards[shard].row_group_rows)):
            for encoded in store.read_rows(shard, group, ["image"])["image"].to_pylist():
                decode_image(encoded)
                count += 1
                if count == BARE_FRAMES // threads:
                    return count
        return count

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(decode, range(threads)))
    return total / (time.perf_counter() - began)


# --- Against other loaders ---


def against_opponents(arguments: Any, cores: int) -> dict[str, Any]:
    sides = ["ours:windows", "ours:pool", "tf_data", *(["octo"] if arguments.octo else [])]
    if arguments.packages:
        loader_opponents.write_mds(open_store(arguments.root), arguments.root / "mds", arguments.packages)
        tried = {workers: child(arguments, f"streaming:{workers}", cores)["windows_per_s"] for workers in range(4)}
        print(
            f"{cores} core(s), mosaicml-streaming by workers: { ({w: round(r) for w, r in tried.items()}) }", flush=True
        )
        sides.append(f"streaming:{max(tried, key=lambda workers: tried[workers])}")
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side in sides:
            rates[side].append(child(arguments, side, cores)["windows_per_s"])
    for side in sides:
        mine = [] if side.startswith("ours") else [own for own in sides if own.startswith("ours")]
        listed = "".join(f"; {own} is {ratio(rates[own], rates[side])} times that" for own in mine)
        print(f"{cores} core(s), {side:<14} {statistics.median(rates[side]):6.0f} windows/s{listed}", flush=True)
    return {side: rates[side] for side in sides}


def measure_ours(arguments: Any, frames: str) -> dict[str, float]:
    from preprocessing.loading.loader import LoaderConfig, WindowReader

    threads = len(os.sched_getaffinity(0))
    config = LoaderConfig(frames=frames, decode_threads=threads, memory_mb=arguments.memory_mb)  # type: ignore[arg-type]
    reader = WindowReader([open_store(arguments.root)], [same()], num_steps=6, config=config)
    with closing(reader), closing(our_batches(reader)) as batches:
        return timed(batches, arguments.seconds)


def measure_tf_data(arguments: Any, _: str) -> dict[str, float]:
    return timed(loader_opponents.tf_data_batches(rlds_folder(arguments.root), batch=BATCH), arguments.seconds)


def measure_octo(arguments: Any, _: str) -> dict[str, float]:
    made = loader_opponents.octo_batches(rlds_folder(arguments.root), arguments.octo, batch=BATCH)
    return timed(made, arguments.seconds)


def measure_streaming(arguments: Any, workers: str) -> dict[str, float]:
    made = loader_opponents.streaming_batches(
        arguments.root / "mds", arguments.packages, workers=int(workers), batch=BATCH
    )
    return timed(made, arguments.seconds)


def timed(batches: Iterator[Any], seconds: float, skipped: int = 20) -> dict[str, float]:
    """Windows per second once under way."""
    for _ in itertools.islice(batches, skipped):
        pass
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(batches)
        count += BATCH
    return {"windows_per_s": count / (time.perf_counter() - began)}


# --- Shared ---


def our_batches(reader: Any) -> Any:
    from preprocessing.loading.loader import Loader

    return iter(Loader(reader, seed=0, lanes=48, global_batch=2 * BATCH, micro_batch=BATCH))


def same() -> Any:
    from rt_models.spec import AffineTransform

    return AffineTransform(name="same", scale=(1.0,) * 11, offset=(0.0,) * 11)


def rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def child(arguments: Any, side: str, cores: int) -> dict[str, Any]:
    """What a fresh process finds that may use only the first `cores` cores."""
    command = [sys.executable, __file__, str(arguments.root), "--child", side, "--rounds", str(arguments.rounds)]
    command += ["--memory-mb", str(arguments.memory_mb), "--seconds", str(arguments.seconds)]
    command += ["--packages", str(arguments.packages)] if arguments.packages else []
    command += ["--octo", *map(str, arguments.octo)] if arguments.octo else []
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": str(cores), "TF_CPP_MIN_LOG_LEVEL": "3"},
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


CHILDREN = {
    "passes": measure_passes,
    "ours": measure_ours,
    "tf_data": measure_tf_data,
    "octo": measure_octo,
    "streaming": measure_streaming,
}


if __name__ == "__main__":
    main()
