"""Small LeRobot folders, v3.0 and v2.1, written with pyarrow and PyAV straight from the format's description."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.store.images import encode_png

FPS = 10
TOP, WRIST = "observation.images.top", "observation.images.wrist"
TASKS = ("open the drawer", "close the drawer", "wipe the table")
_NUMBER = {"shape": [1], "names": None}
FEATURES = {
    TOP: {
        "dtype": "video",
        "shape": [32, 48, 3],
        "names": ["height", "width", "channels"],
        "info": {"video.codec": "h264"},
    },
    WRIST: {"dtype": "image", "shape": [16, 24, 3], "names": ["height", "width", "channels"]},
    "observation.state": {
        "dtype": "float32",
        "shape": [7],
        "names": {"motors": ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]},
    },
    "action": {"dtype": "float32", "shape": [7], "names": ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]},
    "next.reward": {"dtype": "float32", **_NUMBER},
    "next.done": {"dtype": "bool", **_NUMBER},
    "grid": {"dtype": "float64", "shape": [2, 3], "names": None},
    "counts": {"dtype": "int16", "shape": [2], "names": None},
    "note": {"dtype": "string", **_NUMBER},
    "timestamp": {"dtype": "float32", **_NUMBER},
    **{name: {"dtype": "int64", **_NUMBER} for name in ("frame_index", "episode_index", "index", "task_index")},
}


@dataclass(frozen=True, kw_only=True)
class TinyEpisode:
    """Columns over `length` steps; `videos` uint8 (N, 32, 48, 3) of the top camera."""

    length: int
    task: int
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    video_NHWC: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    wrist_NHWC: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))


def episode(seed: int, length: int) -> TinyEpisode:
    """Random numbers, and a top camera whose brightness tells episode and step."""
    rng = np.random.default_rng(seed)
    state = np.cumsum(rng.normal(scale=0.01, size=(length, 7)), axis=0).astype(np.float32)
    levels = brightness(seed, np.arange(length))
    return TinyEpisode(
        length=length,
        task=seed % len(TASKS),
        columns={
            "observation.state": state,
            "action": rng.normal(size=(length, 7)).astype(np.float32),
            "next.reward": rng.random(length).astype(np.float32),
            "next.done": np.arange(length) == length - 1,
            "grid": rng.normal(size=(length, 2, 3)),
            "counts": rng.integers(-300, 300, (length, 2)).astype(np.int16),
        },
        video_NHWC=np.broadcast_to(levels[:, None, None, None], (length, 32, 48, 3)).astype(np.uint8),
        wrist_NHWC=rng.integers(0, 255, (length, 16, 24, 3)).astype(np.uint8),
    )


def brightness(seed: int, step: np.ndarray) -> np.ndarray:
    """The grey level of a frame of the top camera."""
    return (20 + 40 * seed + 9 * step) % 236 + 10


def write_v3(
    folder: Path,
    files: Sequence[Sequence[TinyEpisode]],
    *,
    row_group_rows: int | None = None,
    features: Mapping[str, object] = FEATURES,
) -> Path:
    """One data file and one video for each list of episodes; a row group an episode, or of so many rows."""
    entries = []
    first = 0
    for number, episodes in enumerate(files):
        tables = []
        shown = 0
        for one in episodes:
            index = len(entries)
            tables.append(_table(one, index, first))
            entries.append(_entry(one, index, number, first, shown))
            first += one.length
            shown += one.length
        _write_table(folder / f"data/chunk-000/file-{number:03d}.parquet", tables, row_group_rows)
        video = folder / f"videos/{TOP}/chunk-000/file-{number:03d}.mp4"
        write_video(video, np.concatenate([one.video_NHWC for one in episodes]))
    meta = folder / "meta"
    (meta / "episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(entries), meta / "episodes/chunk-000/file-000.parquet")
    tasks = pa.table({"task_index": pa.array(range(len(TASKS))), "__index_level_0__": pa.array(TASKS)})
    pq.write_table(tasks, meta / "tasks.parquet")
    _write_info(folder, "v3.0", [one for episodes in files for one in episodes], features=features)
    return folder


def write_v21(folder: Path, episodes: Sequence[TinyEpisode], *, chunk_size: int = 1000) -> Path:
    """A Parquet file and a video for each episode."""
    first = 0
    for index, one in enumerate(episodes):
        chunk = f"chunk-{index // chunk_size:03d}"
        _write_table(folder / f"data/{chunk}/episode_{index:06d}.parquet", [_table(one, index, first)], None)
        write_video(folder / f"videos/{chunk}/{TOP}/episode_{index:06d}.mp4", one.video_NHWC)
        first += one.length
    meta = folder / "meta"
    meta.mkdir()
    listed = [{"episode_index": i, "tasks": [TASKS[one.task]], "length": one.length} for i, one in enumerate(episodes)]
    (meta / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    tasks = [{"task_index": number, "task": text} for number, text in enumerate(TASKS)]
    (meta / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tasks))
    _write_info(folder, "v2.1", episodes, chunks_size=chunk_size)
    return folder


def write_video(path: Path, frames_NHWC: np.ndarray, *, gop: int = 2) -> None:
    """H.264 with a key frame every `gop` frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=FPS, options={"g": str(gop), "crf": "10"})
        stream.height, stream.width = frames_NHWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for frame_HWC in frames_NHWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")))
        container.mux(stream.encode())


def _write_info(
    folder: Path,
    version: str,
    episodes: Sequence[TinyEpisode],
    *,
    features: Mapping[str, object] = FEATURES,
    **more: int,
) -> None:
    info = {
        "codebase_version": version,
        "robot_type": None,
        "total_episodes": len(episodes),
        "total_frames": sum(one.length for one in episodes),
        "fps": FPS,
        "splits": {"train": f"0:{len(episodes)}"},
        "features": features,
        **more,
    }
    (folder / "meta/info.json").write_text(json.dumps(info))


def _entry(one: TinyEpisode, index: int, file: int, first: int, shown: int) -> dict[str, object]:
    place = f"videos/{TOP}"
    return {
        "episode_index": index,
        "tasks": [TASKS[one.task]],
        "length": one.length,
        "data/chunk_index": 0,
        "data/file_index": file,
        "dataset_from_index": first,
        "dataset_to_index": first + one.length,
        f"{place}/chunk_index": 0,
        f"{place}/file_index": file,
        f"{place}/from_timestamp": shown / FPS,
        f"{place}/to_timestamp": (shown + one.length) / FPS,
    }


def _table(one: TinyEpisode, index: int, first: int) -> pa.Table:
    steps = np.arange(one.length)
    numbers = {
        **one.columns,
        "timestamp": (steps / FPS).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(one.length, index),
        "index": first + steps,
        "task_index": np.full(one.length, one.task),
    }
    columns = {name: _column(values) for name, values in numbers.items()}
    columns["note"] = pa.array([f"note {index}.{step}" for step in steps])
    pictures = [{"bytes": encode_png(frame), "path": f"{step}.png"} for step, frame in enumerate(one.wrist_NHWC)]
    columns[WRIST] = pa.array(pictures, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    return pa.table(columns)


def _column(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return pa.array(values.tolist(), pa.list_(pa.list_(pa.from_numpy_dtype(values.dtype))))


def _write_table(path: Path, tables: Sequence[pa.Table], row_group_rows: int | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if row_group_rows is not None:
        pq.write_table(pa.concat_tables(tables), path, row_group_size=row_group_rows, compression="snappy")
        return
    with pq.ParquetWriter(path, tables[0].schema, compression="snappy") as writer:
        for table in tables:
            writer.write_table(table)
