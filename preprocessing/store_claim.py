"""What stands in a store's folder before a conversion: nothing, the same conversion begun or finished, or another.

Only the same conversion is continued, or left as it is; over another one nothing is written.
"""

from __future__ import annotations

import json
from typing import Any

from preprocessing.episode_store import PROGRESS, atomic_write, read_manifest
from preprocessing.json_files import parsed


def finished(filesystem: Any, root: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the finished store at `root`. Raises ValueError where it is another store, or files are amiss."""
    manifest = read_manifest(filesystem, root)
    _require_same(manifest.get("settings", {}), settings, f"{root} holds a finished store made")
    sizes = {entry["name"].rpartition("/")[2]: entry["size"] for entry in filesystem.ls(root, detail=True)}
    for shard in manifest.get("shards", []):
        if sizes.get(shard["file"]) != shard["bytes"]:
            raise ValueError(f"{root}/{shard['file']} is missing or cut: delete {root} and preprocess again")
    return manifest


def claim(filesystem: Any, root: str, settings: dict[str, Any]) -> None:
    """Begin, or continue what was begun with the same settings."""
    path, temporary = f"{root}/{PROGRESS}/settings.json", f"{root}/{PROGRESS}"
    filesystem.makedirs(temporary, exist_ok=True)
    if filesystem.exists(path):
        before = parsed(filesystem.cat_file(path), path, remedy=f"delete {root} and preprocess again")
        _require_same(before, settings, f"{root} holds an unfinished conversion begun")
        return
    with atomic_write(filesystem, path, temporary=temporary) as file:
        file.write(json.dumps(settings).encode())


def _require_same(before: dict[str, Any], now: dict[str, Any], what: str) -> None:
    for key, value in now.items():
        if before.get(key) != value:
            raise ValueError(
                f"{what} with another {key} ({_short(before.get(key))}, now {_short(value)}): "
                f"delete it or give another OUT"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."
