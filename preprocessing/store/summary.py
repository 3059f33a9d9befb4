"""What an episode store holds, as plain data (`summary`) and as text for a terminal (`text`).

Counts read only narrow columns.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from preprocessing.store.episode_store import QUARANTINE, EpisodeStore
from preprocessing.store.file_system import file_system_of
from preprocessing.store.integrity import Store
from preprocessing.store.json_files import parsed

STATISTICS = ("mean", "std", "min", "q01", "q99", "max")


def summary(store: EpisodeStore) -> dict[str, Any]:
    """Counts, statistics with units, instructions, flags and quarantine of a store."""
    manifest, dataset = store.manifest, store.dataset
    instructions, flags = usage(store)
    lengths = np.concatenate([shard.episode_lengths for shard in store.shards])
    statistics = dataset.statistics
    dimensions = {
        name: {
            "unit": unit,
            "mean": statistics.mean[i],
            "std": statistics.std[i],
            "min": statistics.minimum[i],
            "q01": statistics.q01[i],
            "q99": statistics.q99[i],
            "max": statistics.maximum[i],
            "note": manifest.statistics.hardly_vary.get(name, ""),
        }
        for i, (name, unit) in enumerate(zip(store.contract.action.names, dataset.units, strict=True))
        if dataset.action_mask[i]
    }
    return {
        "store": store.root,
        "dataset": manifest.dataset,
        "version": manifest.version,
        "split": manifest.split,
        "contract_id": manifest.contract_id,
        "encoder": manifest.encoder,
        "control_hz": manifest.control_hz,
        "image": f"{store.contract.image.height}x{store.contract.image.width}",
        "resize": store.contract.image.resize,
        "gripper": manifest.gripper,
        "counts": asdict(manifest.counts),
        "bytes": store.num_bytes,
        "episode_steps": {"min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max())},
        "dimensions": dimensions,
        "dimensions_lacking": [
            n for n, has in zip(store.contract.action.names, dataset.action_mask, strict=True) if not has
        ],
        "instructions": instructions,
        "flags": flags,
        "quarantine": dict(Counter(line["reason"] for line in quarantine(store)).most_common()),
        "remarks": list(manifest.remarks),
        "notes": manifest.notes,
    }


def text(found: dict[str, Any]) -> str:
    """A summary to read in a terminal."""
    counts, steps = found["counts"], found["episode_steps"]
    lines = [
        f"{found['store']}  contract {found['contract_id']}",
        f"{found['dataset']} {found['version']} {found['split']}: episodes in {counts['episodes_in']} = "
        f"out {counts['episodes_out']} + quarantined {counts['quarantined']}; {counts['steps']} steps, "
        f"{found['bytes'] / 1e6:.1f} MB",
        f"frames {found['image']} (resize {found['resize']}), {found['control_hz']:g} Hz, gripper {found['gripper']}, "
        f"{steps['min']} to {steps['max']} steps an episode (median {steps['median']:g})",
        "",
        *_dimension_lines(found["dimensions"]),
    ]
    if found["dimensions_lacking"]:
        lines.append(f"not in this dataset: {', '.join(found['dimensions_lacking'])}")
    lines += ["", f"{len(found['instructions'])} distinct instructions ({found['encoder']}), by steps:"]
    lines += [f"{count:>8}  {instruction!r}" for instruction, count in list(found["instructions"].items())[:10]]
    for title in ("flags", "quarantine"):
        lines += [f"{title}: {name} {count}" for name, count in found[title].items()]
    lines += [f"remark: {remark}" for remark in found["remarks"]]
    lines += [f"{row['finding']:<13}{row['name']}: {row['sentence']}" for row in verdicts_of(found)]
    lines += [f"notes: {found['notes']}"] if found["notes"] else []
    return "\n".join(part for line in lines for part in _wrapped(line))


def _wrapped(line: str) -> list[str]:
    """In 80 columns; a path stays whole."""
    options = {"subsequent_indent": "    ", "break_long_words": False, "break_on_hyphens": False}
    return [line] if len(line) <= 80 else textwrap.wrap(line, 80, **options)


def _dimension_lines(dimensions: Mapping[str, Any]) -> list[str]:
    """The table of actions within 80 columns: a name that is too long for its line stands on one of its own."""
    lines = [f"{'dimension (unit)':<20}" + "".join(f"{name:>10}" for name in STATISTICS)]
    for name, row in dimensions.items():
        head, numbers = f"{name} ({row['unit']})", "".join(f"{row[key]:>10.3g}" for key in STATISTICS)
        lines += [head, f"{'':<20}{numbers}"] if len(head) > 20 else [f"{head:<20}{numbers}"]
        lines += [f"    {row['note']}"] if row["note"] else []
    return lines


def verdicts_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The audit's verdicts in a summary that has one, contradictions first."""
    order = ("contradicted", "unknown", "holds")
    return sorted(found.get("audit", {}).get("verdicts", []), key=lambda row: order.index(row["finding"]))


def quarantine(store: Store) -> list[dict[str, Any]]:
    """The lines of quarantine.jsonl: shard, record, of episodes the offset in bytes, reason."""
    filesystem, root = file_system_of(store.root)
    path = f"{root}/{QUARANTINE}"
    lines = filesystem.cat_file(path).splitlines()
    return [parsed(line, path, remedy="delete the store and preprocess again") for line in lines]


def usage(store: EpisodeStore) -> tuple[dict[str, int], dict[str, int]]:
    """(steps of each instruction, most used first; steps that carry each flag)."""
    used: Counter[int] = Counter()
    flagged = dict.fromkeys(store.manifest.flag_names, 0)
    for shard in range(len(store.shards)):
        table = store.read_shard(shard, ["instruction", "flags"])
        ids, counts = np.unique(table["instruction"].to_numpy(), return_counts=True)
        used.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
        bits = table["flags"].to_numpy()
        for number, name in enumerate(flagged):
            flagged[name] += int(((bits >> np.uint32(number)) & 1).sum())
    texts = dict(zip(store.instruction_ids.tolist(), store.instruction_texts, strict=True))
    by_text: Counter[str] = Counter()
    for number, count in used.items():  # one text may have been shipped with several vectors
        by_text[texts[number]] += count
    return dict(by_text.most_common()), flagged
