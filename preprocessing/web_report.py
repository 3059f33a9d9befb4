"""What a store of image-text examples holds, as plain data and as text; episodes have `report.py`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from preprocessing.report import quarantine
from preprocessing.web_store import WebStore


def summary(store: WebStore) -> dict[str, Any]:
    """Counts, size and quarantine of a store."""
    manifest = store.manifest
    return {
        "store": store.root,
        **{key: manifest[key] for key in ("kind", "dataset", "version", "split", "counts")},
        "bytes": sum(shard["bytes"] for shard in manifest["shards"]),
        "quarantine": dict(Counter(line["reason"] for line in quarantine(store)).most_common()),
    }


def text(found: dict[str, Any]) -> str:
    """A summary to read in a terminal."""
    counts = found["counts"]
    lines = [
        f"{found['store']}  image-text examples",
        f"{found['dataset']} {found['version']} {found['split']}: examples in {counts['examples_in']} = "
        f"out {counts['examples_out']} + quarantined {counts['quarantined']}; {counts['images']} images, "
        f"{found['bytes'] / 1e6:.1f} MB",
    ]
    return "\n".join([*lines, *(f"quarantine: {reason} {count}" for reason, count in found["quarantine"].items())])
