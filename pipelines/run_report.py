"""One self-contained HTML page about a training run: loss curve, scores beside the lazy policies, episode pictures."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .8rem; border-bottom: 1px solid #d0d7de }
th { text-align: left }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem } svg { max-width: 100% }
"""


def run_page(
    title: str,
    facts: dict[str, Any],
    metrics: list[dict[str, Any]],
    evaluation: dict[str, Any],
    pictures: str,
    more: Mapping[str, tuple[list[str], list[list[str]]]] | None = None,
) -> str:
    """The page; `pictures` is trusted HTML, everything else is escaped. `more`: (head, rows) of tables by title."""
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        _table(["", ""], [[name, value] for name, value in facts.items()]),
        "<h2>Loss</h2>",
        loss_curve(metrics),
        "<h2>Held-out episodes</h2>",
        _scores(evaluation),
        "<h2>Per dimension</h2>",
        _dimensions(evaluation),
        *(f"<h2>{html.escape(name)}</h2>{_table(*table)}" for name, table in (more or {}).items()),
        "<h2>Episodes</h2>",
        pictures,
    ]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(sections)}</body></html>'


def loss_curve(metrics: list[dict[str, Any]]) -> str:
    """SVG of the training and validation loss over optimizer steps."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("loss", "training"), ("validation_loss", "validation")):
        points = [(line["step"], line[key]) for line in metrics if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="" if len(points) > 5 else "o")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("cross-entropy per token")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    page = io.StringIO()
    figure.savefig(page, format="svg")
    return page.getvalue()[page.getvalue().index("<svg") :]


def write_page(path: Path, page: str) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(page)
    partial.replace(path)


def percent(interval: dict[str, float]) -> str:
    """ "61.2 % [58.0, 64.1]" """
    return f"{100 * interval['mean']:.1f} % [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def score_rows(evaluation: dict[str, Any]) -> list[list[str]]:
    """[who, token accuracy, by how much the policy is above it], each with its 95 % interval."""
    rows = [["policy", percent(evaluation["token_accuracy"]), ""]]
    for name, interval in evaluation["lazy"].items():
        rows.append([name.replace("_", " "), percent(interval), percent(evaluation["margin"][name])])
    for name, scores in evaluation.get("perturbed", {}).items():
        rows.append([f"policy, {name.replace('_', ' ')}", percent(scores["token_accuracy"]), percent(scores["fall"])])
    return rows


def dimension_rows(evaluation: dict[str, Any]) -> list[list[str]]:
    """[dimension, unit, the policy's mean absolute error, then each lazy policy's]."""
    rows = []
    for name, scores in evaluation["per_dimension"].items():
        errors = [f"{score['mean_absolute_error']:.4f}" for key, score in scores.items() if key != "unit"]
        rows.append([name, scores["unit"], f"{100 * scores['policy']['token_accuracy']:.1f} %", *errors])
    return rows


def web_rows(evaluation: dict[str, Any]) -> list[list[str]]:
    """[who, score, by how much the model is above it] of image-text examples: VQA accuracy, then CIDEr-D."""
    rows = []
    if "vqa_accuracy" in evaluation:
        rows.append(["model, VQA accuracy", percent(evaluation["vqa_accuracy"]), ""])
        for name, interval in evaluation["lazy"].items():
            rows.append([name.replace("_", " "), percent(interval), percent(evaluation["margin"][name])])
        shuffled = evaluation["perturbed"]["shuffled_images"]
        rows.append(["model, shuffled images", percent(shuffled["vqa_accuracy"]), percent(shuffled["fall"])])
    if "captions" in evaluation:
        captions = evaluation["captions"]
        shuffled = captions["shuffled_images"]
        rows.append(["model, CIDEr-D of captions", plain(captions["cider_d"]), ""])
        rows.append(["model, shuffled images", plain(shuffled["cider_d"]), plain(shuffled["fall"])])
    return rows


def before_rows(before: dict[str, Any], now: dict[str, Any]) -> list[list[str]]:
    """[score, of the earlier model, of this one]."""
    shown = {"cider_d": plain, "scaled_error": error}
    rows = []
    for name in [name for name in now if name in before]:
        say = shown.get(name, percent)
        rows.append([name.replace("_", " "), say(before[name]), say(now[name])])
    return rows


def error(interval: dict[str, float]) -> str:
    """ "0.0412 [0.0388, 0.0437]" """
    return f"{interval['mean']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]"


def plain(interval: dict[str, float]) -> str:
    """ "1.23 [1.10, 1.35]" """
    return f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


WEB_HEAD = ["", "score [95 %]", "model is above by"]
SCORE_HEAD = ["", "token accuracy [95 %]", "policy is above by"]
DIMENSION_HEAD = ["dimension", "unit", "accuracy", "error: policy", "commonest", "mean", "previous"]


def _scores(evaluation: dict[str, Any]) -> str:
    return _table(SCORE_HEAD, score_rows(evaluation))


def _dimensions(evaluation: dict[str, Any]) -> str:
    return _table(DIMENSION_HEAD, dimension_rows(evaluation))


def _table(head: list[str], rows: list[list[Any]]) -> str:
    titles = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
