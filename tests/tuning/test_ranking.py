"""The best by median over seeds, and laws of the Pareto front."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.sweeps_for_tests import sweep
from tuning.ledger import Ledger, Report, State, TrialRecord
from tuning.ranking import best, pareto_front, points
from tuning.sweep import Objective, Sweep, ToTheEnd

pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@given(pairs, st.tuples(st.sampled_from(["min", "max"]), st.sampled_from(["min", "max"])))
def test_the_front_is_what_nothing_beats(values: list[tuple[int, int]], directions: tuple[str, str]) -> None:
    signs = [1 if way == "min" else -1 for way in directions]

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one != other and all(s * a <= s * b for s, a, b in zip(signs, one, other, strict=True))

    front = pareto_front(values, directions)
    for place, value in enumerate(values):
        assert (place in front) == (not any(beats(other, value) for other in values))
    assert front


def filled(tmp: str, of: Sweep, rows: list[tuple[int, State, tuple[float, ...]]]) -> Ledger:
    """A ledger from (point, state, values of the objectives), seeds in turn."""
    ledger = Ledger(tmp)
    for number, (point, state, values) in enumerate(rows):
        known = {o.metric: value for o, value in zip(of.objectives, values, strict=True)}
        ledger.trials[number] = TrialRecord(
            number=number,
            point=point,
            seed=number % len(of.seeds),
            parameters={"x": 0.1 * point},
            state=state,
            reports=(Report(step=1, values=known),),
        )
    return ledger


def test_the_median_over_seeds_decides_not_the_luckiest_trial(tmp_path) -> None:
    three = sweep(seeds=(0, 1, 2))
    lucky = [(0, "finished", (0.1,)), (0, "finished", (0.9,)), (0, "finished", (0.8,))]
    steady = [(1, "finished", (0.4,)), (1, "finished", (0.5,)), (1, "finished", (0.6,))]
    unfinished = [(2, "finished", (0.0,)), (2, "stopped", (0.0,)), (2, "finished", (0.0,))]
    chosen = best(three, ledger := filled(str(tmp_path), three, [*lucky, *steady, *unfinished]))  # type: ignore[list-item]
    assert chosen is not None and chosen.number == 1 and chosen.medians == (0.5,)
    assert [point.medians for point in points(three, ledger)] == [(0.8,), (0.5,), None]


def test_of_several_objectives_the_balanced_point_of_the_front(tmp_path) -> None:
    goals = (Objective(metric="robot", direction="max"), Objective(metric="web", direction="max"))
    two = sweep(objectives=goals, scheduler=ToTheEnd())
    rows = [
        (0, "finished", (1.0, 0.0)),
        (1, "finished", (0.8, 0.9)),
        (2, "finished", (0.0, 1.0)),
        (3, "finished", (0.7, 0.7)),
    ]
    chosen = best(two, filled(str(tmp_path), two, rows))  # type: ignore[arg-type]
    assert chosen is not None and chosen.number == 1


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_value_that_is_not_finite_is_never_the_best(value: float, tmp_path) -> None:
    ledger = filled(str(tmp_path), sweep(), [(0, "finished", (value,)), (1, "finished", (0.5,))])
    chosen = best(sweep(), ledger)
    assert chosen is not None and chosen.number == 1


def test_no_finished_trial_no_best(tmp_path) -> None:
    assert best(sweep(), filled(str(tmp_path), sweep(), [(0, "failed", (0.1,)), (1, "stopped", (0.1,))])) is None


@pytest.mark.parametrize(
    ("values", "nearest"),
    [
        # Costs scaled to 0..1 on the front: the squares decide (0.5 against 0.61), the sum would prefer the second.
        ([(0.0, 1.0), (0.5, 0.5), (0.1, 0.78), (1.0, 0.0)], 1),
        # The same with the first objective in units a thousand times as large and another zero.
        ([(7000.0, 1.0), (7500.0, 0.5), (7100.0, 0.78), (8000.0, 0.0)], 1),
        # The point that is off the front stretches no range.
        ([(0.0, 1.0), (0.6, 0.4), (0.45, 0.6), (1.0, 0.0), (1.0, 90.0)], 1),
        # Two that are as near: the one that came first.
        ([(0.0, 1.0), (0.25, 0.75), (0.75, 0.25), (1.0, 0.0)], 1),
        # An objective in which all of the front are alike decides nothing and divides by nothing.
        ([(3.0, 5.0), (3.0, 4.0)], 1),
    ],
)
def test_the_nearest_to_the_ideal_point_is_by_squares_of_scaled_costs(
    values: list[tuple[float, float]], nearest: int, tmp_path
) -> None:
    goals = (Objective(metric="robot", direction="min"), Objective(metric="web", direction="min"))
    two = sweep(objectives=goals, scheduler=ToTheEnd())
    rows = [(number, "finished", value) for number, value in enumerate(values)]
    chosen = best(two, filled(str(tmp_path), two, rows))  # type: ignore[arg-type]
    assert chosen is not None and chosen.number == nearest


def test_a_point_without_all_of_its_seeds_or_values_has_no_median(tmp_path) -> None:
    ledger = filled(str(tmp_path), sweep(seeds=(0, 1)), [(0, "finished", (0.1,))])
    assert [point.medians for point in points(sweep(seeds=(0, 1)), ledger)] == [None]
    (point,) = points(sweep(seeds=(0, 1)), ledger)
    assert point.parameters == {"x": 0.0} and len(point.trials) == 1
