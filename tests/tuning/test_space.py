"""Laws of dimensions: every value that comes out is one that the range holds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.space import Choice, Dimension, Integer, Uniform, from_optuna, grid, grid_size, to_optuna

numbers = st.floats(1e-6, 1e6)
uniforms = st.builds(
    lambda a, b, log: Uniform(low=min(a, b), high=max(a, b) * 1.5, log=log), numbers, numbers, st.booleans()
)
integers = st.builds(
    lambda low, more, log: Integer(low=low, high=low + more, log=log),
    st.integers(1, 90),
    st.integers(1, 50),
    st.booleans(),
)
choices = st.lists(st.text(max_size=3) | st.integers(), min_size=2, max_size=5, unique_by=repr).map(
    lambda values: Choice(values=tuple(values))
)
dimensions = st.one_of(uniforms, integers, choices)


def holds(dimension: Dimension, value: object) -> bool:
    if isinstance(dimension, Choice):
        return value in dimension.values
    kind = int if isinstance(dimension, Integer) else float
    return type(value) is kind and dimension.low <= value <= dimension.high


@given(dimensions, st.integers(0, 2**32 - 1), st.floats(1.01, 4))
def test_draws_and_perturbations_stay_inside(dimension: Dimension, seed: int, factor: float) -> None:
    random = np.random.default_rng(seed)
    value = dimension.draw(random)
    assert holds(dimension, value)
    assert holds(dimension, dimension.perturb(value, factor, random))
    assert all(holds(dimension, end) for end in dimension.extremes())


@given(integers.filter(lambda d: d.high > 2 * d.low), st.integers(0, 1000))
def test_perturbing_a_whole_number_changes_it(dimension: Integer, seed: int) -> None:
    middle = (dimension.low + dimension.high) // 2
    changed = dimension.perturb(middle, 1.05, np.random.default_rng(seed))
    assert changed != middle


def test_a_choice_is_found_again_in_the_ledgers_json() -> None:
    dimension = Choice(values=((0.9, 0.95), ((1, 2), 3), "a"))
    again = json.loads(json.dumps(dimension.values))
    assert to_optuna({"x": dimension}, {"x": again[1]}) == {"x": 1} and again == list(dimension.values)


@given(st.integers(0, 4), st.integers(0, 99))
def test_perturbing_a_choice_moves_to_a_neighbour(place: int, seed: int) -> None:
    dimension = Choice(values=("a", "b", "c", "d", "e"))
    moved = dimension.values.index(dimension.perturb(dimension.values[place], 2.0, np.random.default_rng(seed)))
    assert abs(moved - place) == 1 or (moved == place and place in (0, 4))


@given(st.dictionaries(st.text(min_size=1, max_size=4), dimensions, min_size=1, max_size=4), st.integers(0, 1000))
def test_optunas_form_is_only_a_form(space: dict[str, Dimension], seed: int) -> None:
    random = np.random.default_rng(seed)
    parameters = {path: dimension.draw(random) for path, dimension in space.items()}
    assert from_optuna(space, to_optuna(space, parameters)) == parameters


def test_a_grid_has_every_combination_once() -> None:
    space = {"a": Choice(values=("x", "y")), "b": Integer(low=1, high=3)}
    points = list(grid(space))
    assert len(points) == grid_size(space) == 6 and points[0] == {"a": "x", "b": 1} and points[-1] == {"a": "y", "b": 3}
    assert len({tuple(point.values()) for point in points}) == 6


def test_a_grid_over_real_numbers_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.lr: a grid needs Choice"):
        next(grid({"optimizer.lr": Uniform(low=0.0, high=1.0)}))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(low=1.0, high=1.0),
        lambda: Uniform(low=0.0, high=1.0, log=True),
        lambda: Integer(low=3, high=2),
        lambda: Choice(values=("alone",)),
        lambda: Uniform(low=0.0, high=float("inf")),
    ],
)
def test_empty_ranges_are_refused(make) -> None:
    with pytest.raises(ValueError, match="needs"):
        make()
