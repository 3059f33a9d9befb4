"""The `meta/` folder of a LeRobot dataset, v3.0, v2.1 or v2.0: features, tasks, and where each episode lies.

v3.0 keeps many episodes in a file, `meta/episodes/*/*.parquet` says where; v2 has a Parquet file and a video per camera
for each episode, `meta/episodes.jsonl` lists them. Units, rotation conventions and gripper signs are in neither.
"""

from __future__ import annotations

import glob
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.store.file_system import FileSystem
from preprocessing.store.json_files import JsonObject, parsed, taken_apart
from preprocessing.store.shard_files import with_retries
from preprocessing.tfds.features import Feature

INFO = "meta/info.json"
TASK = "task"  # the step column with the text of `task_index`
REWARD = "next.reward"
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_REMEDY = "download the dataset again"
_V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
_FIELD = re.compile(r"\{(\w+)(?::0(\d)d)?\}")


@dataclass(frozen=True, kw_only=True)
class VideoSpan:
    """The part of a video file that shows an episode, from the time of its first frame to the end of its last."""

    file: str
    start_s: float
    stop_s: float


@dataclass(frozen=True, kw_only=True)
class EpisodeEntry:
    """Where an episode of `length` frames lies. Files are relative to the dataset's folder; `videos` by feature."""

    index: int
    length: int
    data_file: str
    videos: Mapping[str, VideoSpan]


@dataclass(frozen=True, kw_only=True)
class LeRobotInfo:
    """`meta/info.json`. `splits` are (first, stop) of episode numbers; `features` are by name, in file order."""

    version: str
    fps: float
    features: Mapping[str, Feature]
    splits: Mapping[str, tuple[int, int]]
    chunk_size: int
    data_path: str
    video_path: str

    @property
    def video_keys(self) -> tuple[str, ...]:
        return tuple(name for name, feature in self.features.items() if feature.codec)


def read_info(filesystem: FileSystem, folder: str, root: str) -> LeRobotInfo:
    """Raises ValueError naming the file for a version that is not read, or for what is not as LeRobot writes it."""
    path = f"{folder}/{INFO}"
    blob = with_retries(lambda: filesystem.cat_file(f"{root}/{INFO}"), what=path)
    info = parsed(blob, path, remedy=_REMEDY)
    with taken_apart(path, remedy=_REMEDY):
        version = str(info["codebase_version"])
        if not version.startswith(("v3.", "v2.")):
            raise ValueError(f"LeRobot's layout {version} is not read: v3.0, v2.1 and v2.0 are")
        v3 = version.startswith("v3.")
        fps = float(info["fps"])
        if not 0 < fps < float("inf"):
            raise ValueError(f"fps is {info['fps']}, and must be a number of frames a second above 0")
        total = int(info["total_episodes"])
        splits = info.get("splits") or {"train": f"0:{total}"}
        return LeRobotInfo(
            version=version,
            fps=fps,
            features={name: _feature(name, body) for name, body in info["features"].items()},
            splits={str(name): _bounds(str(text), total) for name, text in splits.items()},
            chunk_size=int(info.get("chunks_size") or 1000),
            data_path=str(info.get("data_path") or (_V3_DATA if v3 else _V2_DATA)),
            video_path=str(info.get("video_path") or (_V3_VIDEO if v3 else _V2_VIDEO)),
        )


def read_tasks(filesystem: FileSystem, folder: str, root: str, info: LeRobotInfo) -> dict[int, str]:
    """The text of each task number. The text's column has no fixed name in v3.0: it is the one beside task_index."""
    if info.version.startswith("v3."):
        table = _table(filesystem, folder, root, "meta/tasks.parquet")
        texts = [name for name in table.column_names if name != "task_index"]
        if "task_index" not in table.column_names or len(texts) != 1:
            raise ValueError(f"{folder}/meta/tasks.parquet has {table.column_names}, not task_index and one text")
        return dict(zip(table["task_index"].to_pylist(), table[texts[0]].to_pylist(), strict=True))
    with taken_apart(f"{folder}/meta/tasks.jsonl", remedy=_REMEDY):
        rows = _json_lines(filesystem, folder, root, "meta/tasks.jsonl")
        return {int(row["task_index"]): str(row["task"]) for row in rows}


def read_episodes(filesystem: FileSystem, folder: str, root: str, info: LeRobotInfo) -> list[EpisodeEntry]:
    """Every episode, by number."""
    if info.version.startswith("v3."):
        files = sorted(filesystem.glob(f"{glob.escape(root)}/meta/episodes/*/*.parquet"))
        if not files:
            raise ValueError(f"{folder} has no meta/episodes/*/*.parquet: {_REMEDY}")
        tables = [_episodes_table(filesystem, folder, root, file[len(root) + 1 :], info) for file in files]
        with taken_apart(f"{folder}/meta/episodes", remedy=_REMEDY):
            entries = [entry for table in tables for entry in _v3_entries(table, info)]
    else:
        with taken_apart(f"{folder}/meta/episodes.jsonl", remedy=_REMEDY):
            rows = _json_lines(filesystem, folder, root, "meta/episodes.jsonl")
            entries = [_v2_entry(int(row["episode_index"]), int(row["length"]), info) for row in rows]
    return sorted(entries, key=lambda entry: entry.index)


def _episodes_table(filesystem: FileSystem, folder: str, root: str, file: str, info: LeRobotInfo) -> pa.Table:
    places = [f"videos/{key}/{field}" for key in info.video_keys for field in _VIDEO_FIELDS]
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index", *places]
    return _table(filesystem, folder, root, file, columns, optional=[_stop_column(key) for key in info.video_keys])


def _stop_column(key: str) -> str:
    return f"videos/{key}/to_timestamp"


_VIDEO_FIELDS = ("chunk_index", "file_index", "from_timestamp")


def _v3_entries(table: pa.Table, info: LeRobotInfo) -> Iterator[EpisodeEntry]:
    for row in table.to_pylist():
        place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        yield EpisodeEntry(
            index=int(row["episode_index"]),
            length=int(row["length"]),
            data_file=_filled(info.data_path, place),
            videos={key: _v3_span(row, key, info) for key in info.video_keys},
        )


def _v3_span(row: JsonObject, key: str, info: LeRobotInfo) -> VideoSpan:
    chunk, file, start_s = (row[f"videos/{key}/{field}"] for field in _VIDEO_FIELDS)
    place = {"video_key": key, "chunk_index": chunk, "file_index": file}
    stop_s = start_s + row["length"] / info.fps
    declared_s = row.get(_stop_column(key))
    if declared_s is not None:  # some converters write the time of the last frame, which ends one frame later
        stop_s = max(declared_s, min(stop_s, declared_s + 1 / info.fps))
    return VideoSpan(file=_filled(info.video_path, place), start_s=float(start_s), stop_s=float(stop_s))


def _v2_entry(index: int, length: int, info: LeRobotInfo) -> EpisodeEntry:
    place: dict[str, str | int] = {"episode_chunk": index // info.chunk_size, "episode_index": index}
    return EpisodeEntry(
        index=index,
        length=length,
        data_file=_filled(info.data_path, place),
        videos={
            key: VideoSpan(file=_filled(info.video_path, {**place, "video_key": key}), start_s=0.0, stop_s=math.inf)
            for key in info.video_keys
        },
    )


def _filled(template: str, values: Mapping[str, str | int]) -> str:
    """A path template filled in. Raises ValueError if it asks for something else, or leads out of the dataset."""

    def fill(match: re.Match[str]) -> str:
        value = values[match[1]]
        return f"{int(value):0{match[2]}d}" if match[2] else str(value)

    path = _FIELD.sub(fill, template)
    if path.startswith("/") or ".." in path.split("/") or "{" in path:
        raise ValueError(f"the path {template!r} leads out of the dataset's folder or cannot be filled in")
    return path


# --- Features ---


def _feature(name: str, body: JsonObject) -> Feature:
    """A feature as a column over the steps; one of a kind that is not read says so where someone wants it."""
    dtype = str(body["dtype"])
    shape = tuple(int(size) for size in body.get("shape") or ())
    names = tuple(_flat_names(body.get("names")))
    key = f"steps/{name}"
    if dtype in ("video", "image"):
        return _picture(key, dtype, shape, names, body.get("info") or body.get("video_info") or {})
    if dtype == "string":
        return Feature(key=key, kind="text", shape=(), dtype="string", outer=(None,))
    try:
        number = np.dtype(dtype)
        if number.kind not in "biuf":
            raise TypeError
    except TypeError:
        refusal = f"{name} has dtype {dtype!r}, which is neither a picture, a number nor a text"
        return Feature(key=key, kind="unknown", shape=(), dtype="object", outer=(None,), refusal=refusal)
    labels = names if len(names) == int(np.prod(shape)) else ()
    return Feature(key=key, kind="tensor", shape=shape, dtype=number.name, outer=(None,), names=labels)


def _picture(key: str, dtype: str, shape: tuple[int, ...], names: tuple[str, ...], video: JsonObject) -> Feature:
    """Shapes are (height, width, channels); published sets also have the channels first, whatever their names say."""
    if len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3):
        shape = (shape[1], shape[2], shape[0])
    depth = bool(video.get("video.is_depth_map") or video.get("is_depth_map"))
    refusal = f"{key.removeprefix('steps/')} is a depth map, which is no colour picture of 8 bits" if depth else ""
    codec = str(video.get("video.codec") or "video") if dtype == "video" else ""
    return Feature(
        key=key, kind="image", shape=shape, dtype="uint8", outer=(None,), refusal=refusal, codec=codec, names=names
    )


def _flat_names(names: object) -> Iterator[str]:
    """Names as a list, or as lists under words such as "motors"."""
    if isinstance(names, Mapping):
        names = list(names.values())
    if isinstance(names, Sequence) and not isinstance(names, str):
        for name in names:
            yield from _flat_names(name)
    elif names is not None:
        yield str(names)


def _bounds(text: str, total: int) -> tuple[int, int]:
    first, colon, stop = text.partition(":")
    if not colon or not 0 <= int(first) <= int(stop) <= total:
        raise ValueError(f"a split is {text!r}, and must be first:stop of {total} episodes")
    return int(first), int(stop)


# --- Files ---


def _table(
    filesystem: FileSystem,
    folder: str,
    root: str,
    file: str,
    columns: Sequence[str] | None = None,
    *,
    optional: Sequence[str] = (),
) -> pa.Table:
    path = f"{folder}/{file}"
    blob = with_retries(lambda: filesystem.cat_file(f"{root}/{file}"), what=path)
    try:
        names = pq.read_schema(io.BytesIO(blob)).names
        wanted = None if columns is None else [name for name in (*columns, *optional) if name in names]
        table = pq.read_table(io.BytesIO(blob), columns=wanted)
    except (OSError, ValueError) as error:  # Arrow's are both
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}): {_REMEDY}") from None
    lacking = [name for name in columns or () if name not in names]
    if lacking:
        raise ValueError(f"{path} has no column {lacking[0]!r}: {_REMEDY}")
    return table


def _json_lines(filesystem: FileSystem, folder: str, root: str, file: str) -> list[JsonObject]:
    blob = with_retries(lambda: filesystem.cat_file(f"{root}/{file}"), what=f"{folder}/{file}")
    return [json.loads(line) for line in blob.splitlines() if line.strip()]
