"""Rows a second of a LeRobot v3.0 folder's numbers: one million rows through the reader, against pyarrow alone.

    python benchmarks/lerobot_rows.py [--rows 1000000] [--episode 250]

Both sides read every number column of the same file on one core; ours cuts them into episodes, checks them against the
metadata and gives NumPy arrays. The file has a row group an episode, as lerobot writes it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.lerobot.dataset import open_lerobot
from preprocessing.rlds import Episode

ROUNDS = 3
FPS = 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--episode", type=int, default=250)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = written(Path(temporary) / "set", flags.rows // flags.episode, flags.episode)
        rounds = [(ours(folder), arrow_alone(folder)) for _ in range(ROUNDS)]
    rows = flags.rows // flags.episode * flags.episode
    rates = {"ours": rows / np.median([a for a, _ in rounds]), "arrow": rows / np.median([b for _, b in rounds])}
    print(f"{rows:,} rows: ours {rates['ours']:,.0f} rows/s, pyarrow alone {rates['arrow']:,.0f} rows/s")
    print(json.dumps({"rows": rows, "rows_per_s": rates["ours"], "arrow_rows_per_s": rates["arrow"]}))


def ours(folder: Path) -> float:
    """Seconds to open the folder and read every number of every episode."""
    began = time.perf_counter()
    dataset = open_lerobot(str(folder))
    count = 0
    for shard in dataset.shards("train"):
        for item in dataset.read_shard(shard):
            assert isinstance(item, Episode)
            count += item.num_steps
    assert count
    return time.perf_counter() - began


def arrow_alone(folder: Path) -> float:
    """Seconds to read the columns as one table."""
    began = time.perf_counter()
    for path in sorted(folder.glob("data/*/*.parquet")):
        pq.ParquetFile(path).read(use_threads=False)
    return time.perf_counter() - began


def written(folder: Path, episodes: int, length: int) -> Path:
    """A folder of random numbers: state (7) and action (7), two tasks."""
    rng = np.random.default_rng(0)
    number = {"shape": [1], "names": None}
    features = {
        "observation.state": {"dtype": "float32", "shape": [7], "names": None},
        "action": {"dtype": "float32", "shape": [7], "names": None},
        "timestamp": {"dtype": "float32", **number},
        **{name: {"dtype": "int64", **number} for name in ("frame_index", "episode_index", "index", "task_index")},
    }
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    steps = np.arange(length)
    writer = None
    for index in range(episodes):
        vectors = {
            name: pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=length * 7).astype(np.float32)), 7)
            for name in ("observation.state", "action")
        }
        table = pa.table(
            {
                **vectors,
                "timestamp": (steps / FPS).astype(np.float32),
                "frame_index": steps,
                "episode_index": np.full(length, index),
                "index": index * length + steps,
                "task_index": np.full(length, index % 2),
            }
        )
        writer = writer or pq.ParquetWriter(folder / "data/chunk-000/file-000.parquet", table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    entries = {
        "episode_index": range(episodes),
        "length": [length] * episodes,
        "data/chunk_index": [0] * episodes,
        "data/file_index": [0] * episodes,
    }
    pq.write_table(
        pa.table({k: pa.array(list(v)) for k, v in entries.items()}),
        folder / "meta/episodes/chunk-000/file-000.parquet",
    )
    pq.write_table(pa.table({"task_index": [0, 1], "task": ["open", "close"]}), folder / "meta/tasks.parquet")
    info = {"codebase_version": "v3.0", "fps": FPS, "total_episodes": episodes, "features": features}
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


if __name__ == "__main__":
    main()
