"""How a store, or whatever refers to one, names the manifest that it was made from."""

from __future__ import annotations

import hashlib

from preprocessing.store.file_system import file_system_of
from preprocessing.store.manifest_file import MANIFEST
from preprocessing.store.shard_files import with_retries

FINGERPRINT_DIGITS = 16


def fingerprint(root: str) -> str:
    """The first 16 hexadecimal digits of SHA-256 of the manifest in folder `root`, which lists that of every file."""
    filesystem, folder = file_system_of(root)
    path = f"{folder.rstrip('/')}/{MANIFEST}"
    return hashlib.sha256(with_retries(lambda: filesystem.cat_file(path), what=path)).hexdigest()[:FINGERPRINT_DIGITS]
