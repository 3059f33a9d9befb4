"""The weights in a flax checkpoint, without JAX: flax's msgpack file, or Orbax arrays (OCDBT or a folder an array).

Flax before 2023 wrote one msgpack file; Orbax keeps arrays in TensorStore's zarr form; the versions between them, of
the time of RT-1-X, write both: a msgpack file `checkpoint` with small arrays in it and placeholders for the others.
What is found in either place is one tree. Needs `msgpack` and `tensorstore`, the extra `jax`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

COLLECTIONS = ("params/", "batch_stats/")  # the rest is the optimizer's and the step
_INLINE, _DATABASE = "checkpoint", "manifest.ocdbt"
_ZARR = {".zarray": "zarr", "zarr.json": "zarr3"}  # file that describes an array -> TensorStore's driver
_FLAX_FILE = re.compile(r"checkpoint(_\d+(\.\d+)?)?")
_UNFINISHED = "orbax-checkpoint-tmp"
_DEPTH = 3  # run / step / item, as Orbax's CheckpointManager nests them
_NDARRAY, _SCALAR = 1, 3  # flax's msgpack extension types


def find_flax(source: Path) -> Path:
    """The newest checkpoint at or below `source`: a msgpack file or an Orbax folder. Newest is the highest number.

    Raises FileNotFoundError if there is none.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: there is no such file or folder")
    checkpoints = list(_checkpoints(source, _DEPTH))
    if not checkpoints:
        raise FileNotFoundError(
            f"no flax or Orbax checkpoint in {source}: give the folder with its 'checkpoint' or 'd'"
        )
    return max(checkpoints, key=_natural)


def read_flax(checkpoint: Path) -> dict[str, np.ndarray]:
    """The leaves of "params" and "batch_stats" in what `find_flax` found, by path ("params/Dense_0/kernel"), float32.

    bfloat16 and float16 become float32 exactly, float64 is rounded. Raises ValueError for a file that cannot be read.
    """
    inline = checkpoint if checkpoint.is_file() else checkpoint / _INLINE
    leaves = _inline_leaves(inline) if inline.is_file() else {}
    if checkpoint.is_dir():
        leaves |= _stored_leaves(checkpoint)
    if not leaves:
        raise ValueError(f"{checkpoint} holds no 'params' and 'batch_stats': is it a checkpoint of a flax model?")
    return {path: _float32(value, f"{path} in {checkpoint}") for path, value in leaves.items()}


def _float32(value: np.ndarray, where: str) -> np.ndarray:
    if value.dtype.fields or value.dtype.kind in "cSU":
        raise ValueError(f"{where} holds {value.dtype}, no real numbers: is it a checkpoint of a flax model?")
    return np.asarray(value, np.float32)


# --- where ---


def _checkpoints(folder: Path, depth: int) -> Iterator[Path]:
    children = sorted(folder.iterdir())
    names = {child.name for child in children}
    if names & {_INLINE, _DATABASE, "_METADATA"} or _holds_arrays(folder):
        yield folder
        return
    for child in children:
        if child.is_file() and _FLAX_FILE.fullmatch(child.name):
            yield child
        elif child.is_dir() and depth and _UNFINISHED not in child.name:
            yield from _checkpoints(child, depth - 1)


def _holds_arrays(folder: Path) -> bool:
    return any((child / name).is_file() for child in folder.iterdir() for name in _ZARR)


def _natural(path: Path) -> list[tuple[float, str]]:
    """checkpoint_9 before checkpoint_10."""
    parts = re.split(r"(\d+)", str(path))
    return [(float(part), "") if part.isdigit() else (-1.0, part) for part in parts]


# --- msgpack ---


def _inline_leaves(file: Path) -> dict[str, np.ndarray]:
    msgpack = _library("msgpack")
    try:
        tree = msgpack.unpackb(file.read_bytes(), ext_hook=_extension, strict_map_key=False)
        leaves = dict(_arrays(tree)) if isinstance(tree, Mapping) else None
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise ValueError(
            f"{file} is no flax checkpoint: its msgpack cannot be read ({type(error).__name__}: {error})"
        ) from error
    if leaves is None:
        raise ValueError(f"{file} is no flax checkpoint: it holds no tree of arrays")
    return {path: value for path, value in leaves.items() if path.startswith(COLLECTIONS)}


def _arrays(tree: Mapping[object, object], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, np.ndarray):
            yield path, value
        elif isinstance(value, Mapping) and "__msgpack_chunked_array__" in value:  # over a gigabyte
            chunks, shape = (list(value[key].values()) for key in ("chunks", "shape"))
            yield path, np.concatenate(chunks).reshape(shape)
        elif isinstance(value, Mapping):
            yield from _arrays(value, f"{path}/")


def _extension(code: int, data: bytes) -> np.ndarray | None:
    if code not in (_NDARRAY, _SCALAR):
        return None
    shape, dtype, buffer = _library("msgpack").unpackb(data)
    if dtype == "bfloat16":  # the upper half of a float32, and unknown to NumPy
        wide = np.frombuffer(buffer, "<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(shape)
    return np.frombuffer(buffer, np.dtype(dtype)).reshape(shape)


# --- TensorStore ---


def _stored_leaves(folder: Path) -> dict[str, np.ndarray]:
    files = {"driver": "file", "path": f"{folder.absolute()}/"}
    leaves: dict[str, np.ndarray] = {}
    if _holds_arrays(folder):
        leaves |= _zarr_leaves(files, folder)
    if (folder / _DATABASE).is_file():
        leaves |= _zarr_leaves({"driver": "ocdbt", "base": files}, folder)
    return leaves


def _zarr_leaves(kvstore: Mapping[str, object], folder: Path) -> dict[str, np.ndarray]:
    """Arrays are named with dots for slashes; no name in an RT-1 tree has a dot of its own."""
    tensorstore = _library("tensorstore")
    try:
        keys = [key.decode() for key in tensorstore.KvStore.open(kvstore).result().list().result()]
        named = [(name, _ZARR[last]) for name, _, last in (key.rpartition("/") for key in keys) if last in _ZARR]
        places = {name.replace(".", "/"): (name, driver) for name, driver in named}
        opened = {
            path: tensorstore.open(_array(kvstore, name, driver), read=True)
            for path, (name, driver) in places.items()
            if path.startswith(COLLECTIONS)
        }
        reading = {path: array.result().read() for path, array in opened.items()}
        return {path: values.result() for path, values in reading.items()}
    except ValueError as error:
        raise ValueError(f"{folder} cannot be read as an Orbax checkpoint: {error}") from error


def _array(kvstore: Mapping[str, object], name: str, driver: str) -> dict[str, object]:
    """The spec of one array. Orbax's zarr has no fill value: a missing chunk is a missing file, not zeros."""
    below = {**kvstore, "path": f"{kvstore.get('path', '')}{name}/"}
    return {"driver": driver, "kvstore": below, "fill_missing_data_reads": driver == "zarr3"}


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"reading a flax checkpoint needs {name}: pip install 'rt-pipelines[jax]'") from error
