"""Where a store lies and what its manifest says: one request where its very folder is named."""

from __future__ import annotations

import glob
import hashlib
from dataclasses import dataclass

from preprocessing.store.file_system import FileSystem
from preprocessing.store.json_files import JsonObject, parsed
from preprocessing.store.shard_files import reaching, with_retries

MANIFEST, PROGRESS = "manifest.json", ".progress"
REMEDY = "delete the store and preprocess again"


@dataclass(frozen=True, kw_only=True)
class ManifestFile:
    """The JSON of a store's manifest, of any kind and version, and of its bytes the SHA-256; `root` is the folder."""

    root: str
    data: JsonObject
    sha256: str


def read_manifest(filesystem: FileSystem, root: str) -> ManifestFile:
    """The manifest in folder `root`. Raises FileNotFoundError if there is none, ValueError if it is damaged."""
    path = f"{root}/{MANIFEST}"
    blob = with_retries(lambda: filesystem.cat_file(path), what=path)
    return ManifestFile(root=root, data=parsed(blob, path, remedy=REMEDY), sha256=hashlib.sha256(blob).hexdigest())


def find_manifest(filesystem: FileSystem, root: str, path: str, split: str | None) -> ManifestFile:
    """Of the store in folder `root`, in error messages `path`, or of the only one (of `split`) below it.

    Raises FileNotFoundError or ValueError with the remedy if there is none, or more than one.
    """
    with reaching(path):
        try:
            return read_manifest(filesystem, root)
        except (FileNotFoundError, NotADirectoryError):
            there = filesystem.exists(root)
    if not there:
        raise FileNotFoundError(f"{path} does not exist: give a folder that rtp preprocess wrote")
    patterns = [f"{glob.escape(root)}/{'*/' * depth}" for depth in range(4)]
    candidates = [hit[: -len(MANIFEST) - 1] for p in patterns[1:] for hit in filesystem.glob(p + MANIFEST)]
    stores = [store for store in sorted(candidates) if split is None or store.rpartition("/")[2] == split]
    if len(stores) == 1:
        return read_manifest(filesystem, stores[0])
    if stores:
        listed = ", ".join(f"{path.rstrip('/')}/{store[len(root) + 1 :]}" for store in stores)
        raise ValueError(f"{path} holds {len(stores)} stores: give one of {listed}")
    if any(filesystem.glob(pattern + PROGRESS) for pattern in patterns):
        raise ValueError(f"{path} holds an unfinished store: run the same command again to finish it")
    if candidates:
        listed = ", ".join(store.rpartition("/")[2] for store in sorted(candidates))
        raise ValueError(f"{path} holds no store of split {split!r}, only {listed}")
    raise ValueError(f"{path} holds no episode store (no {MANIFEST}): make one with rtp preprocess")
