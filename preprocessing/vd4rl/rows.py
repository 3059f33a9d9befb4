"""The rows of V-D4RL episodes (arXiv 2206.04779), in either of its layouts, as dm_env records them.

Row t holds the frame at t and the action, reward and discount that *led to* it: row 0's action is zeros and its reward
nothing. 84 pixels: HDF5 files of many episodes one after another, frames (N, 3, 84, 84). 64 pixels: one .npz file an
episode, frames (N, 64, 64, 3), with the simulator's state beside them.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from preprocessing.rlds import open_folder
from preprocessing.store.file_system import is_local
from preprocessing.store.shard_files import open_with_retries, with_retries

_MOST_BYTES = 1 << 30  # of an unpacked .npz: an episode of V-D4RL has 6 MB
FIRST, MID, LAST = 0, 1, 2  # dm_env's StepType
_NOT_STATE = ("action", "reward", "discount", "step_type", "is_first", "is_last", "is_terminal")


@dataclass(frozen=True, kw_only=True)
class EpisodePlace:
    """Rows `start` to `stop` of a file, relative to the dataset's folder."""

    file: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeFrames:
    """One episode of N rows: frames uint8 (N, H, W, 3), actions (N, A), and columns (N, ...) of state by name."""

    image_NHWC: np.ndarray
    action_NA: np.ndarray
    reward_N: np.ndarray
    discount_N: np.ndarray
    state: Mapping[str, np.ndarray]


def episodes_of_hdf5(url: str, file: str) -> tuple[EpisodePlace, ...]:
    """Where the episodes of an HDF5 file lie: each begins with step type 0.

    Raises ValueError if the file is none, or has no step types.
    """
    with opened_hdf5(url) as data:
        require(url, data, ("observation", "action", "reward", "step_type"))
        step_type_N = np.asarray(data["step_type"]).reshape(-1)
        starts = np.flatnonzero(step_type_N == FIRST).tolist()
        if not starts or starts[0] != 0:
            raise ValueError(f"{url}: its first row does not begin an episode (step_type {step_type_N[:1]})")
        stops = [*starts[1:], len(step_type_N)]
        return tuple(EpisodePlace(file=file, start=a, stop=b) for a, b in zip(starts, stops, strict=True))


def read_hdf5(data: Any, url: str, place: EpisodePlace) -> EpisodeFrames:
    """The rows of an episode in an open HDF5 file. Raises ValueError for one that does not end."""
    with _named(url):
        columns = {name: np.asarray(data[name][place.start : place.stop]) for name in data}
    step_type_N = columns["step_type"].reshape(-1)
    if step_type_N[-1] != LAST or (step_type_N[1:-1] != MID).any():
        raise ValueError(f"rows {place.start} to {place.stop} of {url} are no whole episode: step_type {step_type_N}")
    frames = columns["observation"]
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"observation of {url} is {frames.dtype} {frames.shape}, and must be uint8 (N, 3, H, W)")
    return _episode(url, np.ascontiguousarray(frames.transpose(0, 2, 3, 1)), columns, "observation")


def read_npz(url: str) -> EpisodeFrames:
    """The episode of an .npz file. Nothing in it is unpickled. Raises ValueError for a file that is none."""
    filesystem, path = open_folder(url)
    blob = with_retries(lambda: filesystem.cat_file(path), what=url)
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            if (size := sum(member.file_size for member in archive.infolist())) > _MOST_BYTES:
                raise ValueError(f"{url} unpacks to {size} bytes, at most {_MOST_BYTES} are read")
        with np.load(io.BytesIO(blob), allow_pickle=False) as data:
            require(url, data, ("image", "action", "reward"))
            columns = {name: data[name] for name in data.files}
    except (zipfile.BadZipFile, OSError, EOFError, KeyError, NotImplementedError) as error:
        raise ValueError(f"{url} cannot be read as .npz ({' '.join(str(error).split())})") from None
    frames = columns["image"]
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"image of {url} is {frames.dtype} {frames.shape}, and must be uint8 (N, H, W, 3)")
    return _episode(url, frames, columns, "image")


def require(url: str, data: Any, names: tuple[str, ...]) -> None:
    """Raise ValueError unless `data` has the arrays `names`."""
    lacking = [name for name in names if name not in data]
    if lacking:
        raise ValueError(f"{url} has no array {lacking[0]!r}: it has {', '.join(data) or 'none'}")


def _episode(url: str, frames_NHWC: np.ndarray, columns: Mapping[str, Any], frames: str) -> EpisodeFrames:
    count = len(frames_NHWC)
    arrays = {name: np.asarray(values) for name, values in columns.items() if name != frames}
    wrong = [name for name, values in arrays.items() if values.ndim < 1 or len(values) != count]
    if wrong:
        raise ValueError(f"{url} has {count} frames and {wrong[0]} of shape {arrays[wrong[0]].shape}")
    if "is_first" in arrays and arrays["is_first"].reshape(count)[1:].any():
        raise ValueError(f"{url}: another episode begins in the middle (is_first)")
    if count < 2:
        raise ValueError(f"{url}: an episode of {count} rows holds no action")
    return EpisodeFrames(
        image_NHWC=frames_NHWC,
        action_NA=arrays["action"].reshape(count, -1),
        reward_N=arrays["reward"].reshape(count),
        discount_N=arrays["discount"].reshape(count) if "discount" in arrays else np.ones(count, np.float32),
        state={name: values for name, values in arrays.items() if name not in _NOT_STATE},
    )


@contextmanager
def opened_hdf5(url: str) -> Iterator[Any]:
    """An HDF5 file. Raises ImportError without h5py, ValueError naming the file for one that cannot be read."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError("V-D4RL's HDF5 files need h5py: pip install 'rt-pipelines[vd4rl]'") from error
    filesystem, path = open_folder(url)
    with _named(url), open_with_retries(filesystem, path) as file, h5py.File(file, "r") as data:
        yield data


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Around what h5py reads: its errors, OSErrors among them, become a ValueError that names the file, but for those
    of a network, which say nothing of the data."""
    try:
        yield
    except (OSError, KeyError, RuntimeError) as error:
        if isinstance(error, OSError) and not is_local(open_folder(url)[0]):
            raise
        raise ValueError(f"{url} cannot be read as HDF5 ({' '.join(str(error).split())})") from None
