"""Which point of a sweep is best: the median over its seeds, and for several objectives the Pareto front."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tuning.ledger import Ledger, TrialRecord
from tuning.space import Parameters
from tuning.sweep import Sweep


@dataclass(frozen=True, kw_only=True)
class Point:
    """The trials that share `parameters`, one per seed, and the median of every objective once all have finished, with
    finite values."""

    number: int
    parameters: Parameters
    trials: tuple[TrialRecord, ...]
    medians: tuple[float, ...] | None


def points(sweep: Sweep, ledger: Ledger) -> list[Point]:
    """Every point that has a trial, in order."""
    groups: dict[int, list[TrialRecord]] = {}
    for record in ledger.ordered():
        groups.setdefault(record.point, []).append(record)
    return [
        Point(number=n, parameters=g[-1].parameters, trials=tuple(g), medians=_medians(g, sweep))
        for n, g in sorted(groups.items())
    ]


def best(sweep: Sweep, ledger: Ledger) -> Point | None:
    """The best of the points whose trials have all finished; of several objectives, the point of the Pareto front
    nearest to the best of each, every objective scaled to its range on the front. None if no point has finished."""
    scored = [(point, point.medians) for point in points(sweep, ledger) if point.medians is not None]
    if not scored:
        return None
    costs = [_as_costs(medians, sweep.directions) for _, medians in scored]
    front = pareto_front([medians for _, medians in scored], sweep.directions)
    low = [min(costs[i][k] for i in front) for k in range(len(sweep.objectives))]
    high = [max(costs[i][k] for i in front) for k in range(len(sweep.objectives))]

    def distance(place: int) -> float:
        return sum(((c - a) / (b - a)) ** 2 for c, a, b in zip(costs[place], low, high, strict=True) if b > a)

    return scored[min(front, key=lambda place: (distance(place), place))][0]


def pareto_front(values: Sequence[Sequence[float]], directions: Sequence[str]) -> list[int]:
    """Places of the values that no other beats in one objective without losing in another."""
    costs = [_as_costs(value, directions) for value in values]
    return [
        place
        for place, mine in enumerate(costs)
        if not any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in costs)
    ]


def _as_costs(values: Sequence[float], directions: Sequence[str]) -> tuple[float, ...]:
    return tuple(value if way == "min" else -value for value, way in zip(values, directions, strict=True))


def _medians(trials: Sequence[TrialRecord], sweep: Sweep) -> tuple[float, ...] | None:
    if len(trials) < len(sweep.seeds) or any(trial.state != "finished" for trial in trials):
        return None
    columns = [[trial.last(objective.metric) for trial in trials] for objective in sweep.objectives]
    known = [[value for value in column if value is not None and math.isfinite(value)] for column in columns]
    if any(len(column) < len(trials) for column in known):
        return None
    return tuple(statistics.median(column) for column in known)
