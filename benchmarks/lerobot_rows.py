"""Rows a second of a LeRobot folder's numbers against pyarrow alone, frames a second of its videos against PyAV.

    python benchmarks/lerobot_rows.py [--rows 1000000] [--episode 250]

Both sides read every number column of the same file on one core; ours cuts them into episodes, checks them against the
metadata and gives NumPy arrays. The file has a row group an episode, as lerobot writes it. The video holds six episodes
of 100 frames, 256x320, H.264 with a key frame every second frame; both sides decode every frame to RGB.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.lerobot.dataset import open_lerobot
from preprocessing.lerobot.video import VideoFrames
from preprocessing.rlds import Episode

ROUNDS = 3
FPS = 10
FRAMES = 600


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--episode", type=int, default=250)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = written(Path(temporary) / "set", flags.rows // flags.episode, flags.episode)
        rounds = [(ours(folder), arrow_alone(folder)) for _ in range(ROUNDS)]
        video = Path(temporary) / "video.mp4"
        write_moving_video(video)
        films = [(seek_and_decode(video), decode(video)) for _ in range(ROUNDS)]
    rows = flags.rows // flags.episode * flags.episode
    rates = {"ours": rows / np.median([a for a, _ in rounds]), "arrow": rows / np.median([b for _, b in rounds])}
    print(f"{rows:,} rows: ours {rates['ours']:,.0f} rows/s, pyarrow alone {rates['arrow']:,.0f} rows/s")
    frames = {"ours": FRAMES / np.median([a for a, _ in films]), "av": FRAMES / np.median([b for _, b in films])}
    print(f"{FRAMES} frames in six episodes: ours {frames['ours']:,.0f} frames/s, PyAV in one go {frames['av']:,.0f}")
    print(json.dumps({"rows": rows, "rows_per_s": rates, "frames_per_s": frames}))


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


def seek_and_decode(video: Path) -> float:
    """Seconds for every frame, episode by episode."""
    began = time.perf_counter()
    for first in range(0, FRAMES, FRAMES // 6):
        times_s = np.arange(first, first + FRAMES // 6) / FPS
        assert sum(1 for _ in VideoFrames(url=str(video), times_s=times_s, fps=FPS)) == len(times_s)
    return time.perf_counter() - began


def decode(video: Path) -> float:
    """Seconds for every frame of the file, from its beginning to its end."""
    began = time.perf_counter()
    with av.open(str(video)) as container:
        container.streams.video[0].thread_type = "AUTO"
        assert sum(1 for frame in container.decode(video=0) if frame.to_ndarray(format="rgb24").size) == FRAMES
    return time.perf_counter() - began


def write_moving_video(path: Path) -> None:
    """A textured scene that the camera moves over."""
    scene = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8).repeat(10, axis=0).repeat(10, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=FPS, options={"g": "2", "crf": "18"})
        stream.height, stream.width, stream.pix_fmt = 256, 320, "yuv420p"
        for step in range(FRAMES):
            view = scene[step % 100 : step % 100 + 256, step % 200 : step % 200 + 320]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(view), format="rgb24")))
        container.mux(stream.encode())


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
