"""One self-contained HTML page about a sweep: trials, curves, parallel coordinates, Pareto front, lineage."""

from __future__ import annotations

import html
import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib.figure import Figure

from tuning.ledger import Ledger, TrialRecord
from tuning.ranking import Point, best, pareto_front, points
from tuning.space import Choice, Dimension
from tuning.sweep import Sweep

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .8rem; border-bottom: 1px solid #d0d7de }
th { text-align: left } tr.best { background: #dafbe1 } tr.failed { background: #ffebe9 } tr.stopped { color: #57606a }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem } svg { max-width: 100% }
"""
_BLUE, _GREEN, _GREY = "#0969da", "#1a7f37", "#afb8c1"


def sweep_page(sweep: Sweep, ledger: Ledger, *, num_steps: int) -> str:
    """The page; num_steps: optimizer steps of a whole training."""
    chosen = best(sweep, ledger)
    sections = [
        f"<h1>Sweep {html.escape(sweep.name)}</h1>",
        _table(["", ""], _facts(sweep, ledger, chosen, num_steps)),
        "<h2>Trials</h2>",
        _table(_head(sweep), [_row(sweep, r) for r in ledger.ordered()], [_class(r, chosen) for r in ledger.ordered()]),
        "<h2>Objective while training</h2>",
        *(curves(ledger, objective.metric) for objective in sweep.objectives),
        "<h2>Parallel coordinates</h2>",
        parallel_coordinates(sweep, points(sweep, ledger), chosen),
    ]
    if len(sweep.objectives) > 1:
        sections += ["<h2>Pareto front</h2>", front(sweep, points(sweep, ledger))]
    if any(record.lineage for record in ledger.ordered()):
        sections += ["<h2>Who took over whom</h2>", _table(_LINEAGE_HEAD, lineage_rows(ledger))]
    title = f"Sweep {html.escape(sweep.name)}"
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(sections)}</body></html>'


def curves(ledger: Ledger, metric: str) -> str:
    """SVG of an objective over optimizer steps, one line a trial; those that were stopped early are grey."""
    figure, axes = _axes()
    for record in ledger.ordered():
        seen = [(report.step, report.values[metric]) for report in record.reports if metric in report.values]
        if seen:
            colour = _GREY if record.state == "stopped" else None
            axes.plot(*zip(*seen, strict=True), marker="o", markersize=3, color=colour, label=f"trial {record.number}")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(metric)
    if axes.lines and len(ledger.trials) <= 12:
        axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def parallel_coordinates(sweep: Sweep, tried: Sequence[Point], chosen: Point | None) -> str:
    """SVG with an axis a setting and objective and a line a point; darker is better, the best point is green."""
    figure, axes = _axes()
    lines = [(point, _coordinates(sweep, point)) for point in tried if point.medians is not None]
    if not lines:
        return "<p>No point has finished.</p>"
    columns = list(zip(*(heights for _, heights in lines), strict=True))
    scaled = list(zip(*(_scaled(column) for column in columns), strict=True))
    cost = _scaled([_cost(sweep, point) for point, _ in lines])
    for (point, _), heights, shade in zip(lines, scaled, cost, strict=True):
        mine = chosen is not None and point.number == chosen.number
        axes.plot(
            heights, color=_GREEN if mine else _BLUE, alpha=1.0 if mine else 0.9 - 0.7 * shade, lw=3 if mine else 1
        )
    names = [*sweep.space, *(objective.metric for objective in sweep.objectives)]
    axes.set_xticks(range(len(names)), [f"{n}\n{_range(sweep, n, lines, i)}" for i, n in enumerate(names)], fontsize=8)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    for place in range(len(names)):
        axes.axvline(place, color=_GREY, lw=0.8)
    return _svg(figure)


def front(sweep: Sweep, tried: Sequence[Point]) -> str:
    """SVG of the first two objectives of every finished point, the Pareto front joined."""
    figure, axes = _axes()
    scored = [(point, point.medians) for point in tried if point.medians is not None]
    on_front = set(pareto_front([medians for _, medians in scored], sweep.directions))
    for place, (point, medians) in enumerate(scored):
        axes.plot(*medians[:2], "o", color=_GREEN if place in on_front else _GREY)
        axes.annotate(str(point.number), medians[:2], textcoords="offset points", xytext=(5, 4), fontsize=8)
    joined = sorted(scored[place][1][:2] for place in on_front)
    if joined:
        axes.plot(*zip(*joined, strict=True), color=_GREEN, lw=1)
    axes.set_xlabel(f"{sweep.objectives[0].metric} ({sweep.objectives[0].direction})")
    axes.set_ylabel(f"{sweep.objectives[1].metric} ({sweep.objectives[1].direction})")
    return _svg(figure)


_LINEAGE_HEAD = ["at step", "trial", "took over trial", "before", "after"]


def lineage_rows(ledger: Ledger) -> list[list[str]]:
    """[step, trial, donor, parameters before, parameters after], by step."""
    found = [(exploit, record.number) for record in ledger.ordered() for exploit in record.lineage]
    return [
        [str(e.step), str(number), str(e.parent), parameters_text(e.before), parameters_text(e.after)]
        for e, number in sorted(found, key=lambda pair: (pair[0].step, pair[1]))
    ]


def parameters_text(parameters: Any) -> str:
    """ "optimizer.lr 0.0021, engine TorchEngineConfig" """
    return ", ".join(f"{path} {value_text(value)}" for path, value in parameters.items())


def value_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value.get("type", value)) if isinstance(value, dict) else str(value)


def _facts(sweep: Sweep, ledger: Ledger, chosen: Point | None, num_steps: int) -> list[list[str]]:
    records = ledger.ordered()
    states = Counter(record.state for record in records)
    trained, whole = sum(record.step for record in records), num_steps * len(records)
    facts = [
        ["recipe", sweep.recipe],
        ["trials", ", ".join(f"{count} {state}" for state, count in states.items())],
        ["optimizer steps", f"{trained}, {100 * trained / max(whole, 1):.0f} % of {whole} without early stopping"],
        ["hours in trials", f"{sum(record.seconds for record in records) / 3600:.2f}"],
    ]
    if chosen is not None and chosen.medians is not None:
        scores = [f"{o.metric} {v:.4g}" for o, v in zip(sweep.objectives, chosen.medians, strict=True)]
        facts.append(["best", f"point {chosen.number}: {parameters_text(chosen.parameters)}; {', '.join(scores)}"])
    return facts


def _head(sweep: Sweep) -> list[str]:
    return ["trial", "seed", "state", "step", *sweep.space, *(o.metric for o in sweep.objectives), "minutes", ""]


def _row(sweep: Sweep, record: TrialRecord) -> list[str]:
    values = [value_text(record.parameters[path]) for path in sweep.space]
    scores = [record.last(objective.metric) for objective in sweep.objectives]
    shown = ["" if score is None else f"{score:.4f}" for score in scores]
    start = [str(record.number), str(record.seed), record.state, str(record.step)]
    return [*start, *values, *shown, f"{record.seconds / 60:.1f}", record.reason]


def _class(record: TrialRecord, chosen: Point | None) -> str:
    return "best" if chosen is not None and record.point == chosen.number else record.state


def _coordinates(sweep: Sweep, point: Point) -> list[float]:
    assert point.medians is not None
    return [*(_height(d, point.parameters[path]) for path, d in sweep.space.items()), *point.medians]


def _height(dimension: Dimension, value: Any) -> float:
    if isinstance(dimension, Choice):
        return float(dimension.values.index(value))
    return math.log(value) if dimension.log else float(value)


def _scaled(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]


def _cost(sweep: Sweep, point: Point) -> float:
    assert point.medians is not None
    return point.medians[0] if sweep.objectives[0].direction == "min" else -point.medians[0]


def _range(sweep: Sweep, name: str, lines: Sequence[tuple[Point, Any]], place: int) -> str:
    if name in sweep.space:
        values = [point.parameters[name] for point, _ in lines]
        dimension = sweep.space[name]
        ordered = sorted(values, key=lambda value: _height(dimension, value))
        return f"{value_text(ordered[0])} .. {value_text(ordered[-1])}"
    values = [heights[place] for _, heights in lines]
    return f"{min(values):.4g} .. {max(values):.4g}"


def _axes() -> tuple[Figure, Any]:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    page = io.StringIO()
    figure.savefig(page, format="svg")
    return page.getvalue()[page.getvalue().index("<svg") :]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] = ()) -> str:
    titles = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = []
    for place, row in enumerate(rows):
        marked = f' class="{classes[place]}"' if classes else ""
        body.append(f"<tr{marked}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(body)}</tbody></table>"
