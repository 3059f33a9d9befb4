"""What an episode store holds, as plain data (`summary`) and as text for a terminal (`text`).

Counts read only narrow columns.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Literal, NotRequired, TypedDict

import numpy as np

from preprocessing.store.episode_store import QUARANTINE, EpisodeStore
from preprocessing.store.file_system import file_system_of
from preprocessing.store.integrity import Store
from preprocessing.store.json_files import JsonObject, parsed
from preprocessing.store.step_counts import StepCounts
from rt_models.spec import MAIN_CAMERA, ActionStatistics, camera_role

STATISTICS: tuple[Literal["mean", "std", "min", "q01", "q99", "max"], ...] = ("mean", "std", "min", "q01", "q99", "max")


class DimensionSummary(TypedDict):
    """Statistics of one action dimension in `unit`; `note` says where it hardly varies.

    In a space other than RT-1's `kind` is what it commands and `state` the proprioceptive column that it moves.
    """

    unit: str
    kind: NotRequired[str]
    state: NotRequired[str]
    mean: float
    std: float
    min: float
    q01: float
    q99: float
    max: float
    note: str


class CameraSummary(TypedDict):
    """One stored camera: its role to a model, its path in the source, and the size of its frames; "" where a store of
    before sizes were kept does not say."""

    role: str
    path: str
    size: str
    resize: str


class StateSummary(TypedDict):
    """One column of the state in `unit`; without statistics in a store of before they were kept."""

    unit: str
    statistics: dict[str, float]


class StepsSummary(TypedDict):
    """Steps per episode."""

    min: int
    median: float
    max: int


class VerdictRow(TypedDict):
    """One convention as the audit measured it."""

    name: str
    finding: str
    measured: float | None
    sentence: str


class AuditSummary(TypedDict):
    """The audit of a store; `blocking` are sentences about contradictions."""

    manifest_sha256: str
    episodes: int
    verdicts: list[VerdictRow]
    rules: int
    blocking: list[str]


class StoreSummary(TypedDict):
    """What `rtp inspect` says of an episode store.

    `instructions` and `flags` count steps, `quarantine` counts records by reason; `bytes` are those of the Parquet
    files.
    """

    store: str
    dataset: str
    version: str
    split: str
    contract_id: str
    encoder: str
    control_hz: float
    image: str
    resize: str
    space: str
    gripper: str
    counts: dict[str, int]
    bytes: int
    episode_steps: StepsSummary
    dimensions: dict[str, DimensionSummary]
    dimensions_lacking: list[str]
    cameras: dict[str, CameraSummary]
    cameras_left_out: list[str]
    state: dict[str, StateSummary]
    instructions: dict[str, int]
    flags: dict[str, int]
    quarantine: dict[str, int]
    remarks: list[str]
    notes: str
    rights: NotRequired[dict[str, str]]
    audit: NotRequired[AuditSummary]


def summary(store: EpisodeStore) -> StoreSummary:
    """Counts, statistics with units, instructions, flags and quarantine of a store."""
    manifest = store.manifest
    dataset = store.dataset
    instructions, flags = StepCounts.of_store(store).named(store)
    lengths = np.concatenate([shard.episode_lengths for shard in store.shards])
    summary: StoreSummary = {
        "store": store.root,
        "dataset": manifest.dataset,
        "version": manifest.version,
        "split": manifest.split,
        "contract_id": manifest.contract_id,
        "encoder": manifest.encoder,
        "control_hz": manifest.control_hz,
        "image": f"{store.contract.image.height}x{store.contract.image.width}",
        "resize": store.contract.image.resize,
        "space": store.contract.action.name,
        "gripper": manifest.gripper,
        "counts": asdict(manifest.counts),
        "bytes": store.num_bytes,
        "episode_steps": {"min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max())},
        "dimensions": _dimensions(store),
        "dimensions_lacking": [
            n for n, has in zip(store.contract.action.names, dataset.action_mask, strict=True) if not has
        ],
        "cameras": _cameras(store),
        "cameras_left_out": list(manifest.cameras_left_out),
        "state": _state(store),
        "instructions": instructions,
        "flags": flags,
        "quarantine": dict(Counter(line["reason"] for line in quarantine(store)).most_common()),
        "remarks": list(manifest.remarks),
        "notes": manifest.notes,
    }
    if manifest.rights is not None:
        summary["rights"] = asdict(manifest.rights)
    return summary


def _dimensions(store: EpisodeStore) -> dict[str, DimensionSummary]:
    """Those that the dataset has."""
    dataset, statistics = store.dataset, store.dataset.statistics
    found: dict[str, DimensionSummary] = {}
    for i, (name, unit) in enumerate(zip(store.contract.action.names, dataset.units, strict=True)):
        if not dataset.action_mask[i]:
            continue
        found[name] = {
            "unit": unit,
            "mean": statistics.mean[i],
            "std": statistics.std[i],
            "min": statistics.minimum[i],
            "q01": statistics.q01[i],
            "q99": statistics.q99[i],
            "max": statistics.maximum[i],
            "note": store.manifest.statistics.hardly_vary.get(name, ""),
        }
        if dataset.meanings:
            found[name]["kind"] = dataset.meanings[i].in_words()
            found[name]["state"] = dataset.meanings[i].state
    return found


def _cameras(store: EpisodeStore) -> dict[str, CameraSummary]:
    recipes = {MAIN_CAMERA: store.contract.image, **store.manifest.camera_recipes}
    found: dict[str, CameraSummary] = {}
    for own, path in store.manifest.cameras.items():
        recipe = recipes.get(own)
        found[own] = {
            "role": camera_role(own),
            "path": path,
            "size": f"{recipe.height}x{recipe.width}" if recipe else "",
            "resize": recipe.resize if recipe else "",
        }
    return found


def _state(store: EpisodeStore) -> dict[str, StateSummary]:
    proprio = store.manifest.proprio
    found: dict[str, StateSummary] = {}
    for place, (name, unit) in enumerate(zip(proprio.names, proprio.units, strict=True)):
        rows = _rows(proprio.statistics, place) if proprio.statistics else {}
        found[name] = {"unit": unit, "statistics": rows}
    return found


def _rows(statistics: ActionStatistics, place: int) -> dict[str, float]:
    """Of one column, keyed as the table's heads are."""
    fields = {"min": "minimum", "max": "maximum"}
    return {key: getattr(statistics, fields.get(key, key))[place] for key in STATISTICS}


def text(summary: StoreSummary) -> str:
    """A summary to read in a terminal."""
    counts = summary["counts"]
    steps = summary["episode_steps"]
    lines = [
        f"{summary['store']}  contract {summary['contract_id']}",
        f"{summary['dataset']} {summary['version']} {summary['split']}: episodes in {counts['episodes_in']} = "
        f"out {counts['episodes_out']} + quarantined {counts['quarantined']}; {counts['steps']} steps, "
        f"{summary['bytes'] / 1e6:.1f} MB",
        f"frames {summary['image']} (resize {summary['resize']}), {summary['control_hz']:g} Hz, "
        f"gripper {summary['gripper']}, "
        f"{steps['min']} to {steps['max']} steps an episode (median {steps['median']:g})",
        *_camera_lines(summary),
        *_kind_lines(summary["space"], summary["dimensions"]),
        "",
        *_dimension_lines(summary["dimensions"]),
    ]
    if summary["dimensions_lacking"]:
        lines.append(f"not in this dataset: {', '.join(summary['dimensions_lacking'])}")
    lines += _state_lines(summary["state"])
    lines += ["", f"{len(summary['instructions'])} distinct instructions ({summary['encoder']}), by steps:"]
    lines += [f"{count:>8}  {instruction!r}" for instruction, count in list(summary["instructions"].items())[:10]]
    lines += [f"flags: {name} {count}" for name, count in summary["flags"].items()]
    lines += [f"quarantine: {reason} {count}" for reason, count in summary["quarantine"].items()]
    lines += [f"remark: {remark}" for remark in summary["remarks"]]
    lines += [f"{row['finding']:<13}{row['name']}: {row['sentence']}" for row in verdicts_of(summary)]
    lines += [f"notes: {summary['notes']}"] if summary["notes"] else []
    lines += [f"{name}: {' '.join(words.split())}" for name, words in summary.get("rights", {}).items() if words]
    return "\n".join(part for line in lines for part in _wrapped(line))


def _wrapped(line: str) -> list[str]:
    """In 80 columns; a path stays whole."""
    options = {"subsequent_indent": "    ", "break_long_words": False, "break_on_hyphens": False}
    return [line] if len(line) <= 80 else textwrap.wrap(line, 80, **options)


def _camera_lines(summary: StoreSummary) -> list[str]:
    """The cameras of a store that has more than the main one, and those of the source that it leaves out."""
    named = []
    for own, camera in summary["cameras"].items():
        role = f" ({camera['role']})" if camera["role"] != own else ""
        named.append(f"{own}{role} {camera['size'] or 'of unknown size'}")
    lines = [f"cameras: {', '.join(named)}"] if len(named) > 1 else []
    left_out = summary["cameras_left_out"]
    return lines + ([f"cameras left out (rtp preprocess --cameras): {', '.join(left_out)}"] if left_out else [])


def _state_lines(state: Mapping[str, StateSummary]) -> list[str]:
    """The table of the state; its names alone where nothing is known of their values."""
    if not state:
        return []
    if not all(row["statistics"] for row in state.values()):
        columns = ", ".join(f"{name} ({row['unit']})" for name, row in state.items())
        return ["", f"state: {columns}"]
    return ["", *_table_lines("state (unit)", [(n, r["unit"], r["statistics"], "") for n, r in state.items()])]


def _kind_lines(space: str, dimensions: Mapping[str, DimensionSummary]) -> list[str]:
    """What the dimensions of a space other than RT-1's command, and which state they move."""
    by_kind: dict[str, list[str]] = {}
    for name, row in dimensions.items():
        state, kind = row.get("state"), row.get("kind")
        if kind is not None:
            by_kind.setdefault(kind, []).append(f"{name} ({state})" if state else name)
    lines = [f"  {kind}: {', '.join(names)}" for kind, names in by_kind.items()]
    return [f"actions in {space}, with the state that they move:", *lines] if lines else []


def _dimension_lines(dimensions: Mapping[str, DimensionSummary]) -> list[str]:
    """The table of actions."""
    rows = [(n, row["unit"], {key: row[key] for key in STATISTICS}, row["note"]) for n, row in dimensions.items()]
    return _table_lines("dimension (unit)", rows)


def _table_lines(title: str, rows: Sequence[tuple[str, str, Mapping[str, float], str]]) -> list[str]:
    """(name, unit, statistics, note) within 80 columns: a name too long for its line stands on one of its own."""
    lines = [f"{title:<20}" + "".join(f"{name:>10}" for name in STATISTICS)]
    for name, unit, statistics, note in rows:
        head = f"{name} ({unit})"
        numbers = "".join(f"{statistics[key]:>10.3g}" for key in STATISTICS)
        lines += [head, f"{'':<20}{numbers}"] if len(head) > 20 else [f"{head:<20}{numbers}"]
        lines += [f"    {note}"] if note else []
    return lines


def verdicts_of(summary: StoreSummary) -> list[VerdictRow]:
    """The audit's verdicts in a summary that has one, contradictions first."""
    order = ("contradicted", "unknown", "holds")
    verdicts = summary["audit"]["verdicts"] if "audit" in summary else []
    return sorted(verdicts, key=lambda row: order.index(row["finding"]))


def quarantine(store: Store) -> list[JsonObject]:
    """The lines of quarantine.jsonl: shard, record, of episodes the offset in bytes, reason."""
    filesystem, root = file_system_of(store.root)
    path = f"{root}/{QUARANTINE}"
    lines = filesystem.cat_file(path).splitlines()
    return [parsed(line, path, remedy="delete the store and preprocess again") for line in lines]
