"""What a store of image-text examples holds, as plain data and as text; `store/summary.py` does it for episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import NotRequired, TypedDict

from preprocessing.store.summary import quarantine
from preprocessing.store.web_store import WebStore


class WebStoreSummary(TypedDict):
    """What `rtp inspect` says of a store of image-text examples. `unread` and `quarantine` count by extension and by
    reason; `bytes` are those of the Parquet files."""

    store: str
    kind: str
    dataset: str
    version: str
    split: str
    counts: dict[str, int]
    duplicates: int
    unread: dict[str, int]
    bytes: int
    quarantine: dict[str, int]
    filtered: NotRequired[dict[str, int]]
    languages: NotRequired[dict[str, int]]


def summary(store: WebStore) -> WebStoreSummary:
    """Counts, size and quarantine of a store."""
    manifest = store.manifest
    summary: WebStoreSummary = {
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
    if manifest.filtered is not None:
        summary["filtered"], summary["languages"] = manifest.filtered.filtered, manifest.filtered.languages
    return summary


def text(summary: WebStoreSummary) -> str:
    """A summary to read in a terminal."""
    counts = summary["counts"]
    filtered = summary.get("filtered", {})
    lines = [
        f"{summary['store']}  image-text examples",
        f"{summary['dataset']} {summary['version']} {summary['split']}: "
        f"{account(counts, duplicates=summary['duplicates'], unread=summary['unread'], filtered=filtered)}; "
        f"{counts['images']} images, {summary['bytes'] / 1e6:.1f} MB",
    ]
    lines += [f"filtered: {reason} {count}" for reason, count in filtered.items()]
    lines += [f"language: {code} {count}" for code, count in summary.get("languages", {}).items()]
    return "\n".join([*lines, *(f"quarantine: {reason} {count}" for reason, count in summary["quarantine"].items())])


def account(
    counts: Mapping[str, int],
    *,
    duplicates: int,
    unread: Mapping[str, int],
    filtered: Mapping[str, int] = MappingProxyType({}),
) -> str:
    """The closing account of a conversion or filter. `unread` counts members of archives by extension, `filtered`
    examples by reason."""
    sentence = f"examples in {counts['examples_in']} = out {counts['examples_out']}"
    sentence += f" + quarantined {counts['quarantined']}"
    if filtered:
        sentence += f" + filtered {sum(filtered.values())}"
    if duplicates:
        sentence += f" + duplicates {duplicates}"
    members = [f"{n} .{kind}" if kind else f"{n} without extension" for kind, n in unread.items()]
    return f"{sentence}; members not read: {', '.join(members)}" if members else sentence
