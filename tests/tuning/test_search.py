"""Proposals are a function of what was tried; TPE makes use of it."""

from __future__ import annotations

import pytest

from tuning.search import GridSearch, RandomSearch, SearchConfig, TpeSearch, Tried
from tuning.space import Choice, Parameters, Space, Uniform

SPACE: Space = {"x": Uniform(low=0.0, high=1.0), "kind": Choice(values=({"type": "A"}, {"type": "B"}))}


def cost(parameters: Parameters) -> float:
    return abs(parameters["x"] - 0.7) + (parameters["kind"]["type"] == "A")


def tried(search: SearchConfig, count: int, seed: int = 0) -> list[Tried]:
    found: list[Tried] = []
    for _ in range(count):
        parameters = search.propose(SPACE, ["min"], found, seed)
        assert parameters is not None
        found.append(Tried(parameters=parameters, values=(cost(parameters),)))
    return found


@pytest.mark.parametrize("search", [RandomSearch(), TpeSearch(startup_points=3)])
def test_the_same_history_is_asked_the_same(search: SearchConfig) -> None:
    points = tried(search, 6)
    assert tried(search, 6) == points
    assert tried(search, 6, seed=1) != points
    assert len({point.parameters["x"] for point in points}) == 6


def test_tpe_starts_with_the_random_points_and_then_goes_where_it_is_good() -> None:
    random, tpe = tried(RandomSearch(), 40), tried(TpeSearch(), 40)
    assert tpe[:8] == random[:8]

    def later(points: list[Tried]) -> float:
        return sum(cost(point.parameters) for point in points[20:])

    assert later(tpe) < 0.5 * later(random)


def test_points_that_run_failed_or_were_stopped_do_not_end_a_search() -> None:
    points = tried(RandomSearch(), 9)
    states = [
        Tried(parameters=points[0].parameters),
        Tried(parameters=points[1].parameters, failed=True),
        Tried(parameters=points[2].parameters, pruned_at=(5, 0.5)),
    ]
    found = TpeSearch(startup_points=2).propose(SPACE, ["min"], [*points, *states], 0)
    assert found is not None and 0 <= found["x"] <= 1


def test_several_objectives() -> None:
    points = [
        Tried(parameters=point.parameters, values=(cost(point.parameters), -cost(point.parameters)))
        for point in tried(RandomSearch(), 10)
    ]
    assert TpeSearch().propose(SPACE, ["min", "max"], points, 0) is not None


def test_a_grid_ends() -> None:
    space: Space = {"kind": Choice(values=(1, 2, 3))}
    search, found = GridSearch(), []
    while (parameters := search.propose(space, ["min"], found, 0)) is not None:
        found.append(Tried(parameters=parameters))
    assert [point.parameters["kind"] for point in found] == [1, 2, 3]
