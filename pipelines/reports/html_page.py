"""The one kit for self-contained HTML pages: head and style, tables. Nothing on a page is fetched from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #d0d7de; text-align: right }
th:first-child, td:first-child { text-align: left }
tr.best { background: #dafbe1 } tr.failed { background: #ffebe9 } tr.stopped { color: #57606a }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
.grid { display: flex; flex-wrap: wrap; gap: 1rem } .muted { color: #57606a } svg { max-width: 100% }
"""


def page(title: str, sections: Sequence[str], *, style: str = "", script: str = "") -> str:
    """The page of `sections`, which are trusted HTML, and `script`, which is trusted too; the title is escaped."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}{style}</style>"
    )
    body = "".join([f"<h1>{html.escape(title)}</h1>", *sections, f"<script>{script}</script>" if script else ""])
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'


def heading(text: str) -> str:
    """A heading of a section, escaped."""
    return f"<h2>{html.escape(text)}</h2>"


def note(text: str) -> str:
    """A muted paragraph, escaped."""
    return f'<p class="muted">{html.escape(text)}</p>'


def table(titles: Sequence[str], rows: Iterable[Sequence[object]], *, classes: Iterable[str] = ()) -> str:
    """A table of escaped cells, or a note that there is none; `classes` gives every row its CSS class."""
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    names = iter(classes)
    body = "".join(_row(row, next(names, "")) for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>" if body else note("none")


def _row(cells: Sequence[object], name: str) -> str:
    opening = f'<tr class="{html.escape(name)}">' if name else "<tr>"
    return opening + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"
