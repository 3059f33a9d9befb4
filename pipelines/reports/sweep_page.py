"""One self-contained HTML page about a sweep: trials, curves, parallel coordinates, Pareto front, lineage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipelines.reports import charts, html_page
from pipelines.reports.charts import BLUE, GREEN, GREY
from tuning.ledger import Ledger, TrialRecord
from tuning.ranking import Point, best, pareto_front, points
from tuning.space import parameters_text, value_text
from tuning.sweep import Sweep

_MOST_NAMES = 12  # trials that a legend names
_LINEAGE_HEAD = ("at step", "trial", "copied trial", "before", "after")


def sweep_page(sweep: Sweep, ledger: Ledger, *, num_steps: int) -> str:
    """The page; num_steps: optimizer steps of a whole training."""
    chosen = best(sweep, ledger)
    tried = points(sweep, ledger)
    classes = [_row_class(record, chosen) for record in ledger.ordered()]
    sections = [
        html_page.table(["", ""], _facts(sweep, ledger, chosen, num_steps)),
        html_page.heading("Trials"),
        html_page.table(_head(sweep), [_row(sweep, record) for record in ledger.ordered()], classes=classes),
        html_page.heading("Objective while training"),
        *(curves(ledger, objective.metric) for objective in sweep.objectives),
        html_page.heading("Parallel coordinates"),
        parallel_coordinates(sweep, tried, chosen),
    ]
    if len(sweep.objectives) > 1:
        sections += [html_page.heading("Pareto front"), front(sweep, tried)]
    if lineage := ledger.lineage():
        rows = [
            [e.step, number, e.parent, parameters_text(e.before), parameters_text(e.after)] for number, e in lineage
        ]
        sections += [html_page.heading("Trials copied by others"), html_page.table(_LINEAGE_HEAD, rows)]
    return html_page.page(f"Sweep {sweep.name}", sections)


def curves(ledger: Ledger, metric: str) -> str:
    """SVG of an objective over optimizer steps, one line per trial; those that were stopped early are grey."""
    series = []
    for record in ledger.ordered():
        reported = [(report.step, report.values[metric]) for report in record.reports if metric in report.values]
        name = f"trial {record.number}" if len(ledger.trials) <= _MOST_NAMES else ""
        colour = GREY if record.state == "stopped" else ""
        if reported:
            series.append(charts.Series(name=name, points=reported, colour=colour))
    return charts.plot(series, x_title="optimizer step", y_title=metric)


def parallel_coordinates(sweep: Sweep, tried: Sequence[Point], chosen: Point | None) -> str:
    """SVG with an axis for each setting and objective and a line for each point; darker is better, green the best."""
    scored = [(point, point.medians) for point in tried if point.medians is not None]
    if not scored:
        return html_page.note("No point has finished.")
    columns = []
    axes = []
    for path, dimension in sweep.space.items():
        values = sorted((point.parameters[path] for point, _ in scored), key=dimension.coordinate)
        axes.append((path, f"{value_text(values[0])} .. {value_text(values[-1])}"))
        columns.append(charts.levels([dimension.coordinate(point.parameters[path]) for point, _ in scored]))
    for place, objective in enumerate(sweep.objectives):
        medians = [values[place] for _, values in scored]
        axes.append((objective.metric, f"{min(medians):.4g} .. {max(medians):.4g}"))
        columns.append(charts.levels(medians))
    first = columns[len(sweep.space)]
    cost = first if sweep.objectives[0].direction == "min" else 1 - first
    threads = []
    for place, (point, _) in enumerate(scored):
        is_best = chosen is not None and point.number == chosen.number
        colour, opacity = (GREEN, 1.0) if is_best else (BLUE, 0.9 - 0.7 * cost[place])
        heights = [float(column[place]) for column in columns]
        threads.append(charts.Thread(heights=heights, colour=colour, opacity=opacity, width=3 if is_best else 1))
    return charts.parallel_coordinates(axes, threads)


def front(sweep: Sweep, tried: Sequence[Point]) -> str:
    """SVG of the first two objectives of every finished point, the Pareto front joined."""
    scored = [(point.number, point.medians) for point in tried if point.medians is not None]
    on_front = set(pareto_front([medians for _, medians in scored], sweep.directions))
    coordinates = [(medians[0], medians[1]) for _, medians in scored]
    joined = sorted(coordinates[place] for place in on_front)
    series = [charts.Series(points=joined, colour=GREEN, dots=False)]
    for colour, places in ((GREEN, on_front), (GREY, set(range(len(scored))) - on_front)):
        group = sorted(places)
        labels = [str(scored[place][0]) for place in group]
        group_points = [coordinates[place] for place in group]
        series.append(charts.Series(points=group_points, labels=labels, colour=colour, joined=False))
    x_title, y_title = (f"{objective.metric} ({objective.direction})" for objective in sweep.objectives[:2])
    return charts.plot(series, x_title=x_title, y_title=y_title)


def _facts(sweep: Sweep, ledger: Ledger, chosen: Point | None, num_steps: int) -> list[list[str]]:
    records = ledger.ordered()
    states = Counter(record.state for record in records)
    trained = sum(record.step for record in records)
    whole = num_steps * len(records)
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


def _row_class(record: TrialRecord, chosen: Point | None) -> str:
    return "best" if chosen is not None and record.point == chosen.number else record.state
