"""What an episode store holds, as plain data (`summary`) and as one self-contained HTML page (`page`).

Counts read only narrow columns. Pictures and histograms are taken from episodes and row groups spread evenly over the
store, and the page says how many.
"""

from __future__ import annotations

import html
import textwrap
from collections import Counter
from collections.abc import Mapping
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa

from preprocessing import charts, episode_view, html_page
from preprocessing.episode_store import QUARANTINE, EpisodeStore
from preprocessing.json_files import parsed
from preprocessing.store_check import Store

_HISTOGRAM_GROUPS = 512


def summary(store: EpisodeStore) -> dict[str, Any]:
    """Counts, statistics with units, instructions, flags and quarantine of a store."""
    manifest, dataset = store.manifest, store.contract.datasets[0]
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
            "note": manifest["statistics"]["hardly_vary"].get(name, ""),
        }
        for i, (name, unit) in enumerate(zip(store.contract.action.names, dataset.units, strict=True))
        if dataset.action_mask[i]
    }
    return {
        "store": store.root,
        **{key: manifest[key] for key in ("dataset", "version", "split", "contract_id", "encoder", "control_hz")},
        "image": f"{store.contract.image.height}x{store.contract.image.width}",
        "resize": store.contract.image.resize,
        "gripper": manifest["gripper"],
        "counts": manifest["counts"],
        "bytes": sum(shard["bytes"] for shard in manifest["shards"]),
        "episode_steps": {"min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max())},
        "dimensions": dimensions,
        "dimensions_lacking": [
            n for n, has in zip(store.contract.action.names, dataset.action_mask, strict=True) if not has
        ],
        "instructions": instructions,
        "flags": flags,
        "quarantine": dict(Counter(line["reason"] for line in quarantine(store)).most_common()),
        "remarks": list(manifest.get("remarks", ())),
        "notes": manifest["notes"],
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
    lines += [f"{row['finding']:<13}{row['name']}: {row['sentence']}" for row in _verdicts(found)]
    lines += [f"notes: {found['notes']}"] if found["notes"] else []
    return "\n".join(part for line in lines for part in _wrapped(line))


def _wrapped(line: str) -> list[str]:
    """In 80 columns; a path stays whole."""
    options = {"subsequent_indent": "    ", "break_long_words": False, "break_on_hyphens": False}
    return [line] if len(line) <= 80 else textwrap.wrap(line, 80, **options)


def _dimension_lines(dimensions: Mapping[str, Any]) -> list[str]:
    """The table of actions within 80 columns: a name that is too long for its line stands on one of its own."""
    lines = [f"{'dimension (unit)':<20}" + "".join(f"{name:>10}" for name in _NUMBERS)]
    for name, row in dimensions.items():
        head, numbers = f"{name} ({row['unit']})", "".join(f"{row[key]:>10.3g}" for key in _NUMBERS)
        lines += [head, f"{'':<20}{numbers}"] if len(head) > 20 else [f"{head:<20}{numbers}"]
        lines += [f"    {row['note']}"] if row["note"] else []
    return lines


_NUMBERS = ("mean", "std", "min", "q01", "q99", "max")


def page(store: EpisodeStore, found: dict[str, Any], *, episodes: int = 12) -> str:
    """The HTML page about `store`, whose summary is `found`, with this many episodes as film strips."""
    title = f"{found['dataset']} {found['version']} {found['split']}"
    numbers = [
        [n, r["unit"], *(f"{r[key]:.4g}" for key in _NUMBERS), r["note"]] for n, r in found["dimensions"].items()
    ]
    total = max(found["counts"]["steps"], 1)
    used = [[name, count, f"{100 * count / total:.1f} %"] for name, count in list(found["instructions"].items())[:200]]
    refused = [[line["shard"], line["record"], line["offset"], line["reason"]] for line in quarantine(store)[:1000]]
    lengths = np.concatenate([shard.episode_lengths for shard in store.shards])
    facts = {key: found[key] for key in ("encoder", "control_hz", "image", "resize", "gripper", "contract_id", "notes")}
    sections = [
        html_page.table(["", ""], [*found["counts"].items(), *facts.items()]),
        html_page.heading("Actions, physical values"),
        html_page.table(["dimension", "unit", *_NUMBERS, ""], numbers),
        html_page.note(f"not in this dataset: {', '.join(found['dimensions_lacking']) or 'none'}"),
        _histograms(store),
        html_page.heading("Steps an episode"),
        charts.histogram(lengths, width=640),
        html_page.heading(f"{len(found['instructions'])} distinct instructions"),
        html_page.table(["instruction", "steps", "share"], used),
        html_page.heading("Flags"),
        html_page.table(["flag", "steps"], list(found["flags"].items())),
        *map(html_page.note, found["remarks"]),
        *_audited(found),
        html_page.heading(f"Quarantine: {found['counts']['quarantined']}"),
        html_page.table(["shard", "record", "offset in bytes", "reason"], refused),
        html_page.heading("Episodes"),
        film_strips(store, limit=episodes),
    ]
    return html_page.page(title, sections, style=episode_view.STYLE, script=episode_view.SCRIPT)


def _verdicts(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The audit's verdicts in a summary that has one, contradictions first."""
    order = ("contradicted", "unknown", "holds")
    return sorted(found.get("audit", {}).get("verdicts", []), key=lambda row: order.index(row["finding"]))


def _audited(found: dict[str, Any]) -> list[str]:
    rows = [[row["name"], row["finding"], row["sentence"]] for row in _verdicts(found)]
    if not rows:
        return []
    title = f"Conventions, measured on {found['audit']['episodes']} episodes"
    return [html_page.heading(title), html_page.table(["convention", "finding", "measured"], rows)]


def film_strips(store: EpisodeStore, *, limit: int = 8) -> str:
    """HTML of episodes spread evenly over the store: instruction, frames, and the actions that vary in the store.

    Its page needs the style and, for the frames to play, the script of `episode_view`.
    """

    def curves(table: pa.Table, timeline: episode_view.Timeline) -> str:
        action_NA = table["action"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        dataset = store.contract.datasets[0]
        shown = np.flatnonzero(np.array(dataset.action_mask) & dataset.statistics.varies())
        if not len(shown):
            return ""
        places = timeline.places(np.arange(timeline.length))
        return charts.lines({store.contract.action.names[i]: action_NA[:, i] for i in shown}, places=places)

    chosen = episode_view.spread(store, limit)
    return "".join(episode_view.episode_section(store, shard, episode, curves) for shard, episode in chosen)


def quarantine(store: Store) -> list[dict[str, Any]]:
    """The lines of quarantine.jsonl: shard, record, of episodes the offset in bytes, reason."""
    filesystem, root = fsspec.core.url_to_fs(store.root)
    path = f"{root}/{QUARANTINE}"
    lines = filesystem.cat_file(path).splitlines()
    return [parsed(line, path, remedy="delete the store and preprocess again") for line in lines]


def _histograms(store: EpisodeStore) -> str:
    groups = [(s, g) for s, shard in enumerate(store.shards) for g in range(-(-shard.rows // shard.row_group_rows))]
    chosen = np.unique(np.linspace(0, len(groups) - 1, min(_HISTOGRAM_GROUPS, len(groups))).astype(int))
    tables = [store.read_rows(groups[i][0], groups[i][1], ["action"])["action"].combine_chunks() for i in chosen]
    action_NA = np.concatenate([table.flatten() for table in tables]).reshape(-1, store.contract.action.size)
    dataset = store.contract.datasets[0]
    charted = [
        f"<div>{html.escape(f'{name} [{dataset.units[i]}]')}<br>{charts.histogram(action_NA[:, i])}</div>"
        for i, name in enumerate(store.contract.action.names)
        if dataset.action_mask[i]
    ]
    scale = html_page.note(f"{len(action_NA)} steps, heights on a square-root scale")
    return f'<div class="grid">{"".join(charted)}</div>{scale}'


def usage(store: EpisodeStore) -> tuple[dict[str, int], dict[str, int]]:
    """(steps of each instruction, most used first; steps that carry each flag)."""
    used: Counter[int] = Counter()
    flagged = dict.fromkeys(store.manifest["flag_names"], 0)
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
