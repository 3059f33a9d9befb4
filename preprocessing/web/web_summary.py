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
    reason; `bytes` are those of the Parquet files. `tasks` were asked of episodes, `questions` of each about one;
    `parent` is the store that these are of, or that was filtered, with the fingerprint of its manifest."""

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
    tasks: NotRequired[list[str]]
    questions: NotRequired[int]
    parent: NotRequired[dict[str, str]]
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
    settings = manifest.settings
    if "parent" in settings:
        summary["parent"] = settings["parent"]
    if "tasks" in settings:
        summary["tasks"], summary["questions"] = settings["tasks"], settings["questions"]
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
    if "parent" in summary:
        lines.append(f"made of: {summary['parent']['store']}, manifest {summary['parent']['manifest']}")
    if "tasks" in summary:
        about = f"up to {summary.get('questions')} of each task about an episode"
        lines.append(f"asked: {', '.join(summary['tasks'])}; {about}")
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
