"""An episode store as a LeRobot v3.0 dataset: every number as it is stored, pictures in videos or as they are.

`action` is the source's own vector where the store keeps one of that name, so that a LeRobot set comes back as it was;
else the dimensions that the dataset has, in the units and with the gripper's sign that `meta/rt_pipelines.json` states.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from preprocessing.lerobot.dataset import open_lerobot
from preprocessing.lerobot.metadata import BOOKKEEPING, REWARD, TASK
from preprocessing.lerobot.video import require_av
from preprocessing.lerobot.writer import LeRobotWriter, NumberFeature, Pictures
from preprocessing.rlds import Episode, open_folder
from preprocessing.store.episode_store import EpisodeStore, image_column
from preprocessing.store.file_system import is_local
from preprocessing.store.images import decode_image
from preprocessing.store.new_folders import made_for
from rt_models.spec import camera_role

_CAMERA = re.compile(r"observation\.images\.[^/]+")
_ACTION, _CANONICAL, _STATE, _DONE = "action", "canonical_action", "observation.state", "next.done"
_MEASURED_FRAMES = 64  # of each camera, for the loss


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of an export."""

    pictures: Pictures = "h264"
    """h264 or av1: videos, as LeRobot has them, with the codec's loss; stored: the store's own bytes in Parquet,
    without any."""
    action: Literal["source", "canonical"] = "source"
    """What the feature action holds: the source's vector as it was recorded, where the store keeps one of that name,
    or the canonical dimensions that the dataset has. The other one stands beside it."""
    fps: int | None = None
    """Frames a second, a whole number in LeRobot; by default the store's rate, if that is one."""
    limit: int | None = None
    """Episodes to export at most, from the beginning."""

    def __post_init__(self) -> None:
        for name, value in (("--fps", self.fps), ("--limit", self.limit)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """The account of an export. `psnr_db` is that of the pictures read back against those of the store, by camera;
    None where they are the same bytes. `left_out` are columns of the store that LeRobot has no place for."""

    output: str
    episodes: int
    frames: int
    tasks: int
    features: tuple[str, ...]
    action: str
    psnr_db: dict[str, float | None]
    left_out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Source:
    """How a feature follows from the store's columns."""

    feature: NumberFeature
    column: str
    values: Callable[[np.ndarray], np.ndarray]


def export_store(
    store: EpisodeStore, out: str, config: ExportConfig, progress: Callable[[int], None] = lambda done: None
) -> ExportSummary:
    """Write `store` as a LeRobot dataset at `out`, local or a URL, whole or not at all.

    Raises FileExistsError if there is something at `out`, ValueError for a rate that LeRobot cannot say, or for
    pictures of different sizes. `progress` is told the number of episodes done.
    """
    fps = _whole_rate(store.manifest.control_hz, config.fps)
    if config.pictures != "stored":
        require_av()
    cameras = {role: _camera_name(role, path) for role, path in store.manifest.cameras.items()}
    sources = _sources(store, config)
    with _published(out) as folder:
        writer = LeRobotWriter(
            folder,
            fps=fps,
            features=[source.feature for source in sources],
            cameras=list(cameras.values()),
            pictures=config.pictures,
        )
        (folder / "meta").mkdir()
        places = _places(store, config.limit)
        for done, (shard, number) in enumerate(places, start=1):
            _add(store, writer, sources, cameras, shard, number)
            progress(done)
        writer.close()
        (folder / "meta/rt_pipelines.json").write_text(json.dumps(_origin(store, config), indent=1) + "\n")
        psnr_db = {
            camera: None if config.pictures == "stored" else _psnr_db(store, folder, places[0], role, camera)
            for role, camera in cameras.items()
        }
    return ExportSummary(
        output=out,
        episodes=len(places),
        frames=writer.frames,
        tasks=writer.num_tasks,
        features=(*cameras.values(), *(source.feature.name for source in sources)),
        action=next(source.column for source in sources if source.feature.name == _ACTION),
        psnr_db=psnr_db,
        left_out=tuple(_left_out(store)),
    )


def _add(
    store: EpisodeStore,
    writer: LeRobotWriter,
    sources: Sequence[_Source],
    cameras: dict[str, str],
    shard: int,
    number: int,
) -> None:
    """One episode of the store."""
    columns = dict.fromkeys([*(source.column for source in sources), *map(image_column, cameras), "instruction"])
    table = store.read_episode(shard, number, list(columns))
    text_of = dict(zip(store.instruction_ids.tolist(), store.instruction_texts, strict=True))
    writer.add(
        {source.feature.name: source.values(_numbers(table[source.column])) for source in sources},
        [text_of[instruction] for instruction in table["instruction"].to_pylist()],
        {camera: table[image_column(role)].to_pylist() for role, camera in cameras.items()},
    )


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """(N,) or (N, A) of a column of the store."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if isinstance(array, pa.FixedSizeListArray):
        return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
    return array.to_numpy(zero_copy_only=False)


def _places(store: EpisodeStore, limit: int | None) -> list[tuple[int, int]]:
    every = [(shard, number) for shard, one in enumerate(store.shards) for number in range(len(one.episode_lengths))]
    return every[:limit]


def _whole_rate(control_hz: float, fps: int | None) -> int:
    if fps is not None:
        return fps
    if control_hz != int(control_hz):
        raise ValueError(f"the store has {control_hz:g} steps a second, LeRobot a whole number: say which with --fps")
    return int(control_hz)


# --- Features ---


def _sources(store: EpisodeStore, config: ExportConfig) -> list[_Source]:
    """Every feature of numbers, each name once."""
    sources: dict[str, _Source] = {}
    for source in (*_actions(store, config), *_state(store), *_own_fields(store), *_marks(store)):
        sources.setdefault(source.feature.name, source)
    return list(sources.values())


def _actions(store: EpisodeStore, config: ExportConfig) -> Iterator[_Source]:
    own = store.manifest.source_fields.get(_ACTION)
    as_recorded = own is not None and len(own.shape) == 1
    canonical = _canonical(store, _ACTION if config.action == "canonical" or not as_recorded else _CANONICAL)
    if own is not None and as_recorded:
        name = _ACTION if config.action == "source" else f"source.{_ACTION}"
        yield _verbatim(NumberFeature(name=name, dtype=own.dtype, shape=own.shape), f"source/{_ACTION}")
    yield canonical


def _canonical(store: EpisodeStore, name: str) -> _Source:
    """The canonical dimensions that the dataset has."""
    has = np.flatnonzero(store.dataset.action_mask)
    names = tuple(store.contract.action.names[dimension] for dimension in has)
    feature = NumberFeature(name=name, dtype="float32", shape=(len(has),), names=names)
    return _Source(feature=feature, column="action", values=lambda action_NA: action_NA[:, has])


def _state(store: EpisodeStore) -> Iterator[_Source]:
    names = store.manifest.proprio.names
    if names:
        short = tuple(name.rpartition("/")[2] for name in names)
        labels = short if len(set(short)) == len(short) else tuple(name.replace("/", ".") for name in names)
        yield _verbatim(NumberFeature(name=_STATE, dtype="float32", shape=(len(names),), names=labels), "proprio")


def _own_fields(store: EpisodeStore) -> Iterator[_Source]:
    """Fields of the source that the store keeps: under their own name if LeRobot can have it."""
    for path, form in store.manifest.source_fields.items():
        if path != _ACTION or len(form.shape) != 1:
            legal = "/" not in path and path not in (*BOOKKEEPING, TASK, _ACTION, _CANONICAL, _STATE)
            name = path if legal else f"source.{path.replace('/', '.')}"
            yield _verbatim(NumberFeature(name=name, dtype=form.dtype, shape=form.shape or (1,)), f"source/{path}")


def _marks(store: EpisodeStore) -> Iterator[_Source]:
    if _has_reward(store):
        yield _verbatim(NumberFeature(name=REWARD, dtype="float32", shape=(1,)), "reward")
    yield _verbatim(NumberFeature(name=_DONE, dtype="bool", shape=(1,)), "is_last")
    yield _verbatim(NumberFeature(name="is_terminal", dtype="bool", shape=(1,)), "is_terminal")
    for place, flag in enumerate(store.manifest.flag_names):
        feature = NumberFeature(name=f"flag.{flag}", dtype="bool", shape=(1,))
        yield _Source(feature=feature, column="flags", values=_bit(place))


def _bit(place: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda flags_N: (flags_N >> np.uint32(place)) & 1 == 1


def _verbatim(feature: NumberFeature, column: str) -> _Source:
    return _Source(feature=feature, column=column, values=lambda values: values)


def _has_reward(store: EpisodeStore) -> bool:
    """Whether every step has a reward."""
    return not any(store.read_shard(shard, ["reward"])["reward"].null_count for shard in range(len(store.shards)))


def _left_out(store: EpisodeStore) -> Iterator[str]:
    if REWARD not in store.manifest.source_fields and not _has_reward(store):
        yield "reward"
    yield from ("embedding of each instruction", "record")


def _camera_name(role: str, path: str) -> str:
    return path if _CAMERA.fullmatch(path) else f"observation.images.{role.replace('/', '.')}"


def _origin(store: EpisodeStore, config: ExportConfig) -> dict[str, object]:
    """What LeRobot's files have no place for: what the numbers mean, and where they come from."""
    manifest = store.manifest
    names = store.contract.action.names
    meanings = {name: asdict(meaning) for name, meaning in zip(names, store.dataset.meanings, strict=False)}
    return {
        "dataset": manifest.dataset,
        "version": manifest.version,
        "split": manifest.split,
        "contract": manifest.contract_id,
        "canonical_action": {
            "space": store.contract.action.name,
            "names": list(store.contract.action.names),
            "units": list(store.dataset.units),
            "present": list(store.dataset.action_mask),
            "gripper_convention": store.contract.action.gripper,
            "gripper": manifest.gripper,
            **({"meanings": meanings} if meanings else {}),
        },
        "cameras": {
            _camera_name(role, path): {"role": camera_role(role), "source": path}
            for role, path in manifest.cameras.items()
        },
        "proprio_units": list(manifest.proprio.units),
        "action": config.action,
        "pictures": config.pictures,
        "notes": manifest.notes,
        "remarks": list(manifest.remarks),
    }


# --- The loss of pictures ---


def _psnr_db(store: EpisodeStore, folder: Path, place: tuple[int, int], role: str, camera: str) -> float:
    """Peak signal to noise of the first episode's frames, read back from the video, against those of the store."""
    column = image_column(role)
    stored = store.read_episode(*place, [column])[column].to_pylist()[:_MEASURED_FRAMES]
    dataset = open_lerobot(str(folder))
    first = next(dataset.read_shard(dataset.shards("train")[0], paths=[camera]))
    if not isinstance(first, Episode):
        raise ValueError(f"what was written cannot be read back: {first.reason}")
    pairs = zip(stored, first.steps[camera], strict=False)
    errors = [np.square(decode_image(a).astype(np.float64) - np.asarray(b)).mean() for a, b in pairs]
    return float(10 * np.log10(255**2 / max(float(np.mean(errors)), 1e-9)))


# --- The folder ---


@contextmanager
def _published(out: str) -> Iterator[Path]:
    """A new folder to write, which appears at `out` when it is whole; on an object store its info.json comes last."""
    filesystem, root = open_folder(out.rstrip("/"))
    if filesystem.exists(root):
        raise FileExistsError(f"{out} is there already: name a new folder")
    local = is_local(filesystem)
    parent = Path(root).parent if local else None
    with made_for(parent) if parent else nullcontext():
        partial = Path(tempfile.mkdtemp(prefix=f".{Path(root).name}.", dir=parent))
        try:
            yield partial
            if local:
                partial.chmod(0o755)
                partial.rename(root)
            else:
                files = sorted(
                    (path for path in partial.rglob("*") if path.is_file()), key=lambda path: path.name == "info.json"
                )
                for path in files:
                    filesystem.put_file(str(path), f"{root}/{path.relative_to(partial)}")
        finally:
            shutil.rmtree(partial, ignore_errors=True)
