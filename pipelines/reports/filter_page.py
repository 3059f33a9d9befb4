"""What a filter kept and dropped, as one self-contained HTML page: account, scores, and pictures of each kind."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.reports import charts, html_page
from preprocessing.filtering.filter_store import DECISIONS
from preprocessing.filtering.selection import Verdict
from preprocessing.store.file_system import file_system_of
from preprocessing.store.images import encode_jpeg, thumbnail
from preprocessing.store.web_store import WebStore, pictures_of

PAGE = "filter.html"
_SIDE = 96  # pixels
_STYLE = """
.pair { width: 12rem; font-size: 12px; overflow-wrap: anywhere } .pair img { display: block; image-rendering: auto }
"""
_TITLES = {
    Verdict.KEPT: "Kept, from the lowest score that passed to the highest",
    Verdict.SCORE: "Filtered by score, from the highest that did not pass to the lowest",
    Verdict.LANGUAGE: "Filtered by language",
    Verdict.DUPLICATE: "Duplicates, each after what it is a copy of",
    Verdict.QUARANTINED: "In quarantine",
}


def page(source: WebStore, made: WebStore, *, pictures: int) -> str:
    """The page about `made`, which was filtered from `source`, with so many examples of each kind."""
    account = made.manifest.filtered
    assert account is not None
    decisions = _decisions(made)
    verdicts = np.array(decisions["verdict"].to_pylist(), object)
    scores = decisions["score"].drop_null().to_numpy()
    numbers = {
        "examples in": made.manifest.counts.examples_in,
        "kept": account.kept,
        **account.filtered,
        "duplicates": made.manifest.duplicates,
        **account.quarantined,
        "lowest score that passed": account.lowest_score,
    }
    settings = {k: v for k, v in made.manifest.settings.items() if k in ("parent", "scorer", "keep", "min_score")}
    spoken = [[code, count, account.languages.get(code, 0)] for code, count in account.languages_in.items()]
    sections = [
        html_page.table(["", ""], [*numbers.items(), *settings.items()]),
        html_page.heading("Languages"),
        html_page.table(["language", "in", "kept"], spoken),
        html_page.heading("Scores of all examples"),
        charts.histogram(scores, width=640) if len(scores) else html_page.note("none"),
    ]
    for verdict, title in _TITLES.items():
        chosen = np.flatnonzero(verdicts == verdict.name.lower())
        sections += [
            html_page.heading(f"{title}: {len(chosen)}"),
            _grid(source, decisions, _shown(decisions, chosen, verdict, pictures)),
        ]
    return html_page.page(f"{made.name}: what was kept of {source.root}", sections, style=_STYLE)


def _decisions(made: WebStore) -> pa.Table:
    filesystem, root = file_system_of(made.root)
    return pq.read_table(pa.BufferReader(filesystem.cat_file(f"{root}/{DECISIONS}")))


def _shown(decisions: pa.Table, chosen: np.ndarray, verdict: Verdict, count: int) -> list[int]:
    """Numbers of examples: those nearest to the border of scores, and others spread evenly to its far end."""
    if verdict is Verdict.DUPLICATE:
        copies = chosen[: count // 2].tolist()
        return [number for copy in copies for number in (decisions["original"][copy].as_py(), copy)]
    if verdict not in (Verdict.KEPT, Verdict.SCORE):
        return chosen[:count].tolist()
    score = decisions["score"].take(chosen).to_numpy()
    order = chosen[np.argsort(score if verdict is Verdict.KEPT else -score, kind="stable")]
    near = order[: count // 2]
    far = order[len(near) :]
    spread = far[np.unique(np.linspace(0, len(far) - 1, count - len(near)).astype(int))] if len(far) else far
    return [*near.tolist(), *spread.tolist()]


def _grid(source: WebStore, decisions: pa.Table, numbers: Sequence[int]) -> str:
    if not numbers:
        return html_page.note("none")
    return f'<div class="grid">{"".join(_pair(source, decisions.slice(number, 1)) for number in numbers)}</div>'


def _pair(source: WebStore, decision: pa.Table) -> str:
    """Pictures with their text, score and language."""
    (row,) = decision.to_pylist()
    group, place = divmod(row["row"], source.shards[row["shard"]].row_group_rows)
    names = (source.picture_column, "prompt", "answer")
    columns = source.read_rows(row["shard"], group, names)
    cell, prompt, answer = (columns[name][place].as_py() for name in names)
    text = " ".join(part for part in (prompt[row["example"]], answer[row["example"]]) if part)
    score = "no score" if row["score"] is None else f"{row['score']:.4g}"
    caption = f"{score} · {row['language']}<br>{html.escape(text[:160])}"
    shown = "".join(map(_picture, pictures_of(cell))) or html_page.note("no picture")
    return f'<div class="pair">{shown}{caption}</div>'


def _picture(encoded: bytes) -> str:
    try:
        small = encode_jpeg(thumbnail(encoded, _SIDE), quality=80)
    except ValueError as error:
        return html_page.note(str(error))
    data = base64.b64encode(small).decode()
    return f'<img src="data:image/jpeg;base64,{data}" width="{_SIDE}" height="{_SIDE}" alt="">'
