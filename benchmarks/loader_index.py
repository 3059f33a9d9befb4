"""Seconds and memory until the order of a store of 100 million steps can be asked for its samples.

The manifest is a real one, of as many shards and episodes as such a store would have, read through `EpisodeStore.open`;
only the Parquet files are not there. Memory is the growth of the process's peak RSS over what it has with the imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from loader_store import open_store
from measure import print_json

from preprocessing.loading.loader import Loader, LoaderConfig, WindowReader
from preprocessing.store.episode_store import EpisodeStore
from rt_models.spec import AffineTransform

SAME = AffineTransform(name="same", scale=(1.0,) * 11, offset=(0.0,) * 11)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="folder with the store of loader_store.py")
    parser.add_argument("--steps", type=int, default=100_000_000)
    parser.add_argument("--shards", type=int, default=1024)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large = simulated(open_store(arguments.root), Path(folder), arguments.steps, arguments.shards)
        before = peak_mb()
        began, cpu_began = time.perf_counter(), time.process_time()
        store = EpisodeStore.open(large)
        reader = WindowReader([store], [SAME], num_steps=6, config=LoaderConfig())
        loader = Loader(
            reader, seed=0, lanes=48, global_batch=1024, micro_batch=1024, position=arguments.steps // 2048 * 1024
        )
        samples = loader._samples(loader.state()["sample"])
        seconds, grown_mb = time.perf_counter() - began, peak_mb() - before
    cpu_s = time.process_time() - cpu_began
    print(f"{reader.index.num_rows:,} steps, {reader.index.num_episodes:,} episodes, {len(store.shards)} shards")
    print(
        f"{seconds:.2f} s ({cpu_s:.2f} s of CPU) to the rows of a global batch of {len(samples.rows)} in mid-epoch; "
        f"{grown_mb:.0f} MB"
    )
    results = {
        "steps": reader.index.num_rows,
        "seconds": round(seconds, 3),
        "cpu_s": round(cpu_s, 3),
        "grown_mb": round(grown_mb),
    }
    print_json("loader_index", arguments, results)


def simulated(store: EpisodeStore, folder: Path, steps: int, shards: int) -> str:
    """A folder that opens as a store of so many steps."""
    manifest, random = json.loads(Path(store.root, "manifest.json").read_text()), np.random.default_rng(0)
    per_shard = steps // shards
    template = manifest["shards"][0]
    manifest["shards"] = []
    for number in range(shards):
        lengths = random.integers(20, 61, per_shard // 20)
        lengths = lengths[: np.searchsorted(np.cumsum(lengths), per_shard) + 1]
        entry = template | {"file": f"shard-{number:05d}.parquet", "episode_lengths": lengths.tolist()}
        manifest["shards"].append(entry | {"rows": int(lengths.sum())})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "instructions.parquet").write_bytes(Path(store.root, "instructions.parquet").read_bytes())
    return str(folder)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
