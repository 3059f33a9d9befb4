"""Writes a LeRobot v3.0 folder episode by episode, with pyarrow and PyAV alone.

Files follow huggingface/lerobot 0.4.4: a row group an episode, a new data file at 100 MB and a new video at 200 MB, the
text of a task as pandas index, `meta/info.json` last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.lerobot.statistics import ColumnStatistics, PictureStatistics
from preprocessing.lerobot.video_files import CHUNK_FILES, VideoFiles

Pictures = Literal["h264", "av1", "stored"]
DATA_BYTES, VIDEO_BYTES = 100 << 20, 200 << 20
_PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@dataclass(frozen=True, kw_only=True)
class NumberFeature:
    """A feature of numbers: `shape` is that of one step, () or (1,) are both one number."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()

    def arrow(self, values: np.ndarray) -> pa.Array:
        """The Parquet column of values (N, ...)."""
        shape = () if self.shape == (1,) else self.shape
        flat = pa.array(np.ascontiguousarray(values, self.dtype).ravel())
        for size in reversed(shape[1:]):
            flat = pa.ListArray.from_arrays(pa.array(np.arange(0, len(flat) + 1, size), pa.int32()), flat)
        return pa.FixedSizeListArray.from_arrays(flat, shape[0]) if shape else flat

    def declared(self) -> dict[str, object]:
        return {"dtype": self.dtype, "shape": list(self.shape or (1,)), "names": list(self.names) or None}


INDICES = (
    NumberFeature(name="timestamp", dtype="float32", shape=(1,)),
    *(
        NumberFeature(name=name, dtype="int64", shape=(1,))
        for name in ("frame_index", "episode_index", "index", "task_index")
    ),
)


class LeRobotWriter:
    """Episodes of one rate; `close` makes the folder a dataset. `cameras` are features such as
    "observation.images.top"; with pictures "stored" their bytes go into Parquet as they are, else into videos."""

    def __init__(
        self,
        folder: Path,
        *,
        fps: int,
        features: Sequence[NumberFeature],
        cameras: Sequence[str],
        pictures: Pictures,
        robot: str | None = None,
    ) -> None:
        self._folder, self._fps, self._robot, self._cameras = folder, fps, robot, tuple(cameras)
        self._features = (*features, *INDICES)
        self._videos = {
            camera: VideoFiles(folder, camera, fps=fps, codec=pictures, most_bytes=VIDEO_BYTES)
            for camera in cameras
            if pictures != "stored"
        }
        self._numbers = {feature.name: ColumnStatistics() for feature in self._features}
        self._seen = {camera: PictureStatistics() for camera in cameras}
        self._data = _DataFiles(folder)
        self._tasks: dict[str, int] = {}
        self._entries: list[dict[str, object]] = []
        self.frames = 0

    def add(
        self, numbers: Mapping[str, np.ndarray], texts: Sequence[str], pictures: Mapping[str, Sequence[bytes]]
    ) -> None:
        """One episode of N steps: arrays (N, ...) by feature, a text a step, encoded pictures by camera.

        Raises ValueError if the pictures of a camera differ in size.
        """
        count = len(texts)
        number = len(self._entries)
        tasks = [self._tasks.setdefault(text, len(self._tasks)) for text in texts]
        steps = np.arange(count)
        values = {
            **numbers,
            "timestamp": (steps / self._fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(count, number),
            "index": self.frames + steps,
            "task_index": np.array(tasks),
        }
        columns = {feature.name: feature.arrow(values[feature.name]) for feature in self._features}
        for feature in self._features:
            self._numbers[feature.name].add(np.asarray(values[feature.name]).reshape(count, -1))
        entry: dict[str, object] = {
            "episode_index": number,
            "tasks": list(dict.fromkeys(texts)),
            "length": count,
            "dataset_from_index": self.frames,
            "dataset_to_index": self.frames + count,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for camera in self._cameras:
            entry |= self._add_pictures(camera, pictures[camera], columns)
        self._entries.append(entry | self._data.add(pa.table(columns)))
        self.frames += count

    def _add_pictures(
        self, camera: str, encoded: Sequence[bytes], columns: dict[str, pa.Array]
    ) -> dict[str, int | float]:
        """Write one camera's pictures; what the episode's entry says of its video, if there is one."""
        if camera in self._videos:
            span = self._videos[camera].add(self._seen[camera].watched(encoded))
            return {f"videos/{camera}/{name}": value for name, value in span.items()}
        for frame in self._seen[camera].watched(encoded):
            del frame  # seen by the statistics alone
        rows = [{"bytes": data, "path": None} for data in encoded]
        columns[camera] = pa.array(rows, _PICTURE)
        return {}

    @property
    def num_tasks(self) -> int:
        return len(self._tasks)

    def close(self) -> None:
        """Write what describes the episodes."""
        self._data.close()
        for video in self._videos.values():
            video.close()
        episodes = self._folder / "meta/episodes/chunk-000/file-000.parquet"
        episodes.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._entries), episodes)
        pq.write_table(_task_table(list(self._tasks)), self._folder / "meta/tasks.parquet")
        statistics = {name: column.to_json() for name, column in self._numbers.items()}
        statistics |= {camera: seen.to_json() for camera, seen in self._seen.items()}
        _write_json(self._folder / "meta/stats.json", statistics)
        _write_json(self._folder / "meta/info.json", self._info())

    def _info(self) -> dict[str, object]:
        total = len(self._entries)
        return {
            "codebase_version": "v3.0",
            "robot_type": self._robot,
            "total_episodes": total,
            "total_frames": self.frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_BYTES >> 20,
            "video_files_size_in_mb": VIDEO_BYTES >> 20,
            "fps": self._fps,
            "splits": {"train": f"0:{total}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
            if self._videos
            else None,
            "features": {
                **{camera: self._declared_camera(camera) for camera in self._cameras},
                **{feature.name: feature.declared() for feature in self._features},
            },
        }

    def _declared_camera(self, camera: str) -> dict[str, object]:
        height, width = self._seen[camera].size
        form: dict[str, object] = {"shape": [height, width, 3], "names": ["height", "width", "channels"]}
        if camera not in self._videos:
            return {"dtype": "image", **form}
        return {"dtype": "video", **form, "info": self._videos[camera].info(height, width)}


class _DataFiles:
    """The Parquet files of the frames: one row group an episode."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: pq.ParquetWriter | None = None
        self._number, self._bytes = 0, 0

    def add(self, table: pa.Table) -> dict[str, int]:
        if self._writer is not None and self._bytes + table.nbytes > DATA_BYTES:
            self.close()
            self._number, self._bytes = self._number + 1, 0
        chunk, file = divmod(self._number, CHUNK_FILES)
        if self._writer is None:
            path = self._folder / f"data/chunk-{chunk:03d}/file-{file:03d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(path, table.schema, compression="snappy")
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        self._bytes += table.nbytes
        return {"data/chunk_index": chunk, "data/file_index": file}

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _task_table(texts: Sequence[str]) -> pa.Table:
    """Task numbers with their texts as the index of a pandas frame: LeRobot looks texts up by it."""
    table = pa.table({"task_index": pa.array(range(len(texts)), pa.int64()), "task": pa.array(texts, pa.string())})

    def column(name: str, kind: str, numpy_type: str) -> dict[str, str | None]:
        return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_type, "metadata": None}

    described = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [column("task_index", "int64", "int64"), column("task", "unicode", "object")],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(described)})


def _write_json(path: Path, data: Mapping[str, object]) -> None:
    path.write_text(json.dumps(data, indent=4) + "\n")
