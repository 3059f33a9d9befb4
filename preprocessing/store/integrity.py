"""Whether the files of a store are those that its manifest lists."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from preprocessing.store.file_system import FileSystem, file_system_of, is_local
from preprocessing.store.shard_files import ShardFiles, with_retries
from preprocessing.store.store_manifest import InstructionsFile, ShardEntry, StoreManifest, WebManifest, WebShardEntry

CHECKSUM_BYTES = 2 << 30  # of local files: a second or two
_AT_ONCE = 16
_REMEDY = "delete the store and preprocess again"


class Store(Protocol):
    """An episode store or a store of web data."""

    @property
    def root(self) -> str: ...

    @property
    def manifest(self) -> StoreManifest | WebManifest: ...


def require_whole(store: Store, *, checksum_bytes: float = CHECKSUM_BYTES) -> None:
    """Raise ValueError naming the first file that is not as the manifest says, OSError for one that cannot be read.

    Sizes and row counts are compared, and checksums of a local store that has no more than `checksum_bytes`.
    """
    filesystem, root = file_system_of(store.root)
    manifest = store.manifest
    shards = manifest.shards
    footers = ShardFiles(filesystem, [f"{root}/{shard.file}" for shard in shards], [shard.bytes for shard in shards])
    sizes = None if is_local(filesystem) else _sizes(filesystem, root)
    small = is_local(filesystem) and sum(shard.bytes for shard in manifest.shards) <= checksum_bytes
    checksums = small or checksum_bytes == float("inf")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        if isinstance(manifest, StoreManifest):
            _require_file(filesystem, root, manifest.instructions, checksums, sizes)
        checks = [
            pool.submit(_require_shard, filesystem, footers, number, root, shard, checksums, sizes)
            for number, shard in enumerate(shards)
        ]
        for check in checks:
            check.result()


def _sizes(filesystem: FileSystem, root: str) -> dict[str, int]:
    """Of an object store, whose listing has a thousand sizes in one answer."""
    filesystem.invalidate_cache()
    entries = with_retries(lambda: filesystem.ls(root, detail=True), what=root)
    return {entry["name"].rpartition("/")[2]: entry["size"] for entry in entries}


def _require_shard(
    filesystem: FileSystem,
    footers: ShardFiles,
    number: int,
    root: str,
    shard: ShardEntry | WebShardEntry,
    checksums: bool,
    sizes: Mapping[str, int] | None,
) -> None:
    _require_file(filesystem, root, shard, checksums, sizes)
    rows = footers.num_rows(number)
    if rows != shard.rows:
        raise ValueError(f"{root}/{shard.file} holds {rows} rows, its manifest says {shard.rows}: {_REMEDY}")


def _require_file(
    filesystem: FileSystem,
    root: str,
    entry: ShardEntry | WebShardEntry | InstructionsFile,
    checksums: bool,
    sizes: Mapping[str, int] | None,
) -> None:
    path = f"{root}/{entry.file}"
    try:
        size = with_retries(lambda: filesystem.size(path), what=path) if sizes is None else sizes[entry.file]
    except (FileNotFoundError, KeyError):
        raise ValueError(f"{path} is missing: {_REMEDY}") from None
    if not isinstance(entry, InstructionsFile) and size != entry.bytes:
        raise ValueError(f"{path} has {size} bytes, its manifest says {entry.bytes}: {_REMEDY}")
    if checksums and _sha256(filesystem, path) != entry.sha256:
        raise ValueError(f"{path} differs from its checksum in the manifest: {_REMEDY}")


def _sha256(filesystem: FileSystem, path: str) -> str:
    def read() -> str:
        digest = hashlib.sha256()
        with filesystem.open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    return with_retries(read, what=path)
