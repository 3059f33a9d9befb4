"""Writes a tree of arrays as flax and Orbax do, with msgpack and TensorStore alone.

The layouts were compared with those of flax 0.7.5 and 0.12.8, orbax-checkpoint 0.4.2 and 0.12.8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import tensorstore

Leaves = Mapping[str, np.ndarray]


def flax_file(file: Path, leaves: Leaves, *, chunk: int | None = None) -> None:
    """Flax's own msgpack file; arrays of more than `chunk` elements are cut up, as flax does beyond a gigabyte."""
    tree = nested({path: _chunked(value, chunk) for path, value in leaves.items()})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgpack.packb(tree, default=_packed, strict_types=True))


def orbax_folder(folder: Path, leaves: Leaves, *, driver: str, database: bool) -> None:
    """Orbax's arrays; `driver` zarr or zarr3, each in a folder or (`database`) all in one OCDBT."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"driver": "file", "path": f"{folder}/"}
    below = {"driver": "ocdbt", "base": files} if database else files
    for path, value in leaves.items():
        kvstore = {**below, "path": f"{below.get('path', '')}{path.replace('/', '.')}/"}
        spec = {"driver": driver, "kvstore": kvstore, "store_data_equal_to_fill_value": True}
        array = tensorstore.open(spec, create=True, dtype=value.dtype.name, shape=value.shape).result()
        array.write(value).result()
    (folder / "_METADATA").write_text("{}")


def mixed_folder(folder: Path, leaves: Leaves) -> None:
    """As of the time of RT-1-X: small arrays in the msgpack file, placeholders there for the others."""
    small = {path: value for path, value in leaves.items() if value.size < 4}
    stored = {path: value for path, value in leaves.items() if path not in small}
    orbax_folder(folder, stored, driver="zarr", database=True)
    placeholders = {path: f"PLACEHOLDER://{path.replace('/', '.')}" for path in stored}
    (folder / "checkpoint").write_bytes(msgpack.packb(nested(small | placeholders), default=_packed))


LAYOUTS: dict[str, Callable[[Path, Leaves], None]] = {
    "flax": flax_file,
    "flax in chunks": lambda file, leaves: flax_file(file, leaves, chunk=3),
    "orbax zarr": lambda folder, leaves: orbax_folder(folder, leaves, driver="zarr", database=False),
    "orbax zarr3": lambda folder, leaves: orbax_folder(folder, leaves, driver="zarr3", database=False),
    "orbax ocdbt": lambda folder, leaves: orbax_folder(folder, leaves, driver="zarr", database=True),
    "orbax ocdbt zarr3": lambda folder, leaves: orbax_folder(folder, leaves, driver="zarr3", database=True),
    "orbax with msgpack": mixed_folder,
}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path 'a/b/c' as nested dictionaries."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return tree


def _chunked(value: np.ndarray, chunk: int | None) -> Any:
    """The value as flax's msgpack splits arrays of more than `chunk` elements."""
    if chunk is None or value.size <= chunk:
        return value
    flat = value.reshape(-1)
    pieces = [flat[first : first + chunk] for first in range(0, flat.size, chunk)]
    numbered = [{str(number): item for number, item in enumerate(items)} for items in (value.shape, pieces)]
    return {"__msgpack_chunked_array__": True, "shape": numbered[0], "chunks": numbered[1]}


def _packed(value: Any) -> Any:
    """An array as flax's msgpack extension type."""
    content = (list(value.shape), value.dtype.name, value.tobytes())
    return msgpack.ExtType(1, msgpack.packb(content))
