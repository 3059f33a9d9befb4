"""Whether the files of a store are those that its manifest lists."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import fsspec

from preprocessing.store.shard_files import ShardFiles, is_local, with_retries

CHECKSUM_BYTES = 2 << 30  # of local files: a second or two
_AT_ONCE = 16
_REMEDY = "delete the store and preprocess again"


class Store(Protocol):
    """An episode store or a store of web data."""

    @property
    def root(self) -> str: ...

    @property
    def manifest(self) -> dict[str, Any]: ...


def require_whole(store: Store, *, checksum_bytes: float = CHECKSUM_BYTES) -> None:
    """Raise ValueError naming the first file that is not as the manifest says, OSError for one that cannot be read.

    Sizes and row counts are compared, and checksums of a local store that has no more than `checksum_bytes`.
    """
    filesystem, root = fsspec.core.url_to_fs(store.root)
    shards = store.manifest["shards"]
    footers = ShardFiles(filesystem, [f"{root}/{shard['file']}" for shard in shards])
    small = is_local(filesystem) and sum(shard["bytes"] for shard in shards) <= checksum_bytes
    checksums = small or checksum_bytes == float("inf")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        if "instructions" in store.manifest:
            entry = store.manifest["instructions"]
            pool.submit(_require_file, filesystem, f"{root}/{entry['file']}", entry, checksums).result()
        checks = [
            pool.submit(_require_shard, filesystem, footers, number, f"{root}/{shard['file']}", shard, checksums)
            for number, shard in enumerate(shards)
        ]
        for check in checks:
            check.result()


def _require_shard(
    filesystem: Any, footers: ShardFiles, number: int, path: str, shard: dict[str, Any], checksums: bool
) -> None:
    _require_file(filesystem, path, shard, checksums)
    rows = footers.num_rows(number)
    if rows != shard["rows"]:
        raise ValueError(f"{path} holds {rows} rows, its manifest says {shard['rows']}: {_REMEDY}")


def _require_file(filesystem: Any, path: str, entry: dict[str, Any], checksums: bool) -> None:
    try:
        size = with_retries(lambda: filesystem.size(path), what=path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {_REMEDY}") from None
    if size != entry.get("bytes", size):
        raise ValueError(f"{path} has {size} bytes, its manifest says {entry['bytes']}: {_REMEDY}")
    if checksums and _sha256(filesystem, path) != entry["sha256"]:
        raise ValueError(f"{path} differs from its checksum in the manifest: {_REMEDY}")


def _sha256(filesystem: Any, path: str) -> str:
    def read() -> str:
        digest = hashlib.sha256()
        with filesystem.open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    return with_retries(read, what=path)
