"""The content of an episode store, as one self-contained HTML page; `preprocessing/store/summary.py` has the counts.

Pictures and histograms are taken from episodes and row groups spread evenly over the
store, and the page says how many.
"""

from __future__ import annotations

import html

import numpy as np
import pyarrow as pa

from pipelines.reports import charts, episode_view, html_page
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.summary import STATISTICS, StoreSummary, quarantine, verdicts_of

_HISTOGRAM_GROUPS = 512


def page(store: EpisodeStore, summary: StoreSummary, *, episodes: int = 12) -> str:
    """The HTML page about `store`, whose summary is `summary`, with this many episodes as film strips."""
    title = f"{summary['dataset']} {summary['version']} {summary['split']}"
    numbers = [
        [n, r["unit"], *(f"{r[key]:.4g}" for key in STATISTICS), r["note"]] for n, r in summary["dimensions"].items()
    ]
    total = max(summary["counts"]["steps"], 1)
    used = [
        [name, count, f"{100 * count / total:.1f} %"] for name, count in list(summary["instructions"].items())[:200]
    ]
    refused = [[line["shard"], line["record"], line["offset"], line["reason"]] for line in quarantine(store)[:1000]]
    lengths = np.concatenate([shard.episode_lengths for shard in store.shards])
    facts = {
        key: summary[key]
        for key in ("encoder", "control_hz", "image", "resize", "space", "gripper", "contract_id", "notes")
    }
    sections = [
        html_page.table(["", ""], [*summary["counts"].items(), *facts.items()]),
        html_page.heading("Actions, physical values"),
        html_page.table(["dimension", "unit", *STATISTICS, ""], numbers),
        html_page.note(f"not in this dataset: {', '.join(summary['dimensions_lacking']) or 'none'}"),
        _histograms(store),
        *_cameras_and_state(summary),
        html_page.heading("Steps per episode"),
        charts.histogram(lengths, width=640),
        html_page.heading(f"{len(summary['instructions'])} distinct instructions"),
        html_page.table(["instruction", "steps", "share"], used),
        html_page.heading("Flags"),
        html_page.table(["flag", "steps"], list(summary["flags"].items())),
        *map(html_page.note, summary["remarks"]),
        *_audited(summary),
        html_page.heading(f"Quarantine: {summary['counts']['quarantined']}"),
        html_page.table(["shard", "record", "offset in bytes", "reason"], refused),
        html_page.heading("Episodes"),
        film_strips(store, limit=episodes),
    ]
    return html_page.page(title, sections, style=episode_view.STYLE, script=episode_view.SCRIPT)


def _cameras_and_state(summary: StoreSummary) -> list[str]:
    cameras = [[own, c["role"], c["path"], c["size"], c["resize"]] for own, c in summary["cameras"].items()]
    left_out = ", ".join(summary["cameras_left_out"]) or "none"
    sections = [
        html_page.heading("Cameras"),
        html_page.table(["camera", "role", "field of the source", "size", "resize"], cameras),
        html_page.note(f"of the source and not stored (rtp preprocess --cameras): {left_out}"),
    ]
    state = [
        [name, row["unit"], *(f"{row['statistics'][key]:.4g}" if row["statistics"] else "" for key in STATISTICS)]
        for name, row in summary["state"].items()
    ]
    if not state:
        return sections
    return [*sections, html_page.heading("State"), html_page.table(["column", "unit", *STATISTICS], state)]


def _audited(summary: StoreSummary) -> list[str]:
    rows = [[row["name"], row["finding"], row["sentence"]] for row in verdicts_of(summary)]
    if "audit" not in summary or not rows:
        return []
    title = f"Conventions, measured on {summary['audit']['episodes']} episodes"
    return [html_page.heading(title), html_page.table(["convention", "finding", "measured"], rows)]


def film_strips(store: EpisodeStore, *, limit: int = 8) -> str:
    """HTML of episodes spread evenly over the store: instruction, frames, and the actions that vary in the store.

    Its page needs the style and, for the frames to play, the script of `episode_view`.
    """

    def curves(table: pa.Table, timeline: episode_view.Timeline) -> str:
        action_NA = table["action"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        dataset = store.dataset
        shown = np.flatnonzero(np.array(dataset.action_mask) & dataset.statistics.varies())
        if not len(shown):
            return ""
        places = timeline.places(np.arange(timeline.length))
        return charts.lines({store.contract.action.names[i]: action_NA[:, i] for i in shown}, places=places)

    chosen = episode_view.spread(store, limit)
    return "".join(episode_view.episode_section(store, shard, episode, curves) for shard, episode in chosen)


def _histograms(store: EpisodeStore) -> str:
    groups = [(s, g) for s, shard in enumerate(store.shards) for g in range(-(-shard.rows // shard.row_group_rows))]
    chosen = np.unique(np.linspace(0, len(groups) - 1, min(_HISTOGRAM_GROUPS, len(groups))).astype(int))
    tables = [store.read_rows(groups[i][0], groups[i][1], ["action"])["action"].combine_chunks() for i in chosen]
    action_NA = np.concatenate([table.flatten() for table in tables]).reshape(-1, store.contract.action.size)
    dataset = store.dataset
    charted = [
        f"<div>{html.escape(f'{name} [{dataset.units[i]}]')}<br>{charts.histogram(action_NA[:, i])}</div>"
        for i, name in enumerate(store.contract.action.names)
        if dataset.action_mask[i]
    ]
    scale = html_page.note(f"{len(action_NA)} steps, heights on a square-root scale")
    return f'<div class="grid">{"".join(charted)}</div>{scale}'
