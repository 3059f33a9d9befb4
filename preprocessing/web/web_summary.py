"""What a store of image-text examples holds, as plain data and as text; `store/summary.py` does it for episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from preprocessing.store.summary import quarantine
from preprocessing.store.web_store import WebStore


def summary(store: WebStore) -> dict[str, Any]:
    """Counts, size and quarantine of a store."""
    manifest = store.manifest
    return {
        "store": store.root,
        "kind": manifest.kind,
        "dataset": manifest.dataset,
        "version": manifest.version,
        "split": manifest.split,
        "counts": asdict(manifest.counts),
        "duplicates": manifest.duplicates,
        "unread": manifest.unread,
        "bytes": store.num_bytes,
        "quarantine": dict(Counter(line["reason"] for line in quarantine(store)).most_common()),
    }


def text(found: dict[str, Any]) -> str:
    """A summary to read in a terminal."""
    counts = found["counts"]
    lines = [
        f"{found['store']}  image-text examples",
        f"{found['dataset']} {found['version']} {found['split']}: {account({**found, **counts})}; "
        f"{counts['images']} images, {found['bytes'] / 1e6:.1f} MB",
    ]
    return "\n".join([*lines, *(f"quarantine: {reason} {count}" for reason, count in found["quarantine"].items())])


def account(counts: Mapping[str, Any]) -> str:
    """The closing account of a conversion, in which nothing is missing."""
    said = f"examples in {counts['examples_in']} = out {counts['examples_out']} + quarantined {counts['quarantined']}"
    if counts["duplicates"]:
        said += f" + duplicates {counts['duplicates']}"
    unread = [f"{n} .{kind}" if kind else f"{n} without extension" for kind, n in counts["unread"].items()]
    return f"{said}; members not read: {', '.join(unread)}" if unread else said
