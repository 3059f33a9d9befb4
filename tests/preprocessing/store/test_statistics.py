"""Statistics equal NumPy's, however the rows are cut into shards."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preprocessing.store.statistics import Moments, tiny_ranges
from rt_models.spec import ActionStatistics

ROWS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 60), st.just(3)),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


@settings(deadline=None)
@given(ROWS, st.lists(st.integers(0, 60), max_size=4))
def test_any_cut_into_shards_gives_numpys_statistics(rows: np.ndarray, cuts: list[int]) -> None:
    moments = Moments.empty(3)
    for part in np.split(rows, sorted(min(cut, len(rows)) for cut in cuts)):
        moments = moments.merged(Moments.from_json(json.loads(json.dumps(Moments.of(part).to_json()))))
    found, exact = moments.statistics(), rows.astype(np.float64)
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.std, exact.std(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found.minimum, exact.min(axis=0))
    np.testing.assert_array_equal(found.maximum, exact.max(axis=0))
    largest = np.abs(exact).max(axis=0)
    for fraction, quantile in ((0.01, found.q01), (0.99, found.q99)):
        error = np.abs(np.array(quantile) - np.quantile(exact, fraction, axis=0))
        assert (error <= largest * 2**-11).all()


def test_quantiles_of_many_rows_are_within_the_promised_error() -> None:
    rows = np.random.default_rng(0).lognormal(size=(20_000, 2)).astype(np.float32)
    found = Moments.of(rows).statistics()
    np.testing.assert_allclose(found.q01, np.quantile(rows, 0.01, axis=0), rtol=2**-12)
    np.testing.assert_allclose(found.q99, np.quantile(rows, 0.99, axis=0), rtol=2**-12)


@given(st.permutations(range(4)))
def test_histograms_do_not_depend_on_the_order(order: list[int]) -> None:
    parts = [np.random.default_rng(i).normal(size=(50, 1)) for i in range(4)]
    straight, shuffled = Moments.empty(1), Moments.empty(1)
    for i in range(4):
        straight, shuffled = straight.merged(Moments.of(parts[i])), shuffled.merged(Moments.of(parts[order[i]]))
    np.testing.assert_array_equal(straight.quantiles(0.37), shuffled.quantiles(0.37))


def test_short_numbers_are_exact() -> None:
    rows = np.array([[-1.0], [0.0], [1.0], [0.5]] * 50)
    found = Moments.of(rows).statistics()
    assert (found.q01, found.q99) == ((-1.0,), (1.0,))


def test_dimensions_that_hardly_vary_are_named() -> None:
    rows = np.zeros((1000, 4))
    rows[:, 1], rows[:, 2] = np.linspace(0, 1e-5, 1000), np.linspace(-1, 1, 1000)
    verdicts = tiny_ranges(Moments.of(rows).statistics(), ["a", "b", "c", "d"], [True, True, True, False])
    assert verdicts == {"a": "constant", "b": "tiny range"}


def spread(**given: tuple[float, ...]) -> ActionStatistics:
    """Statistics of two dimensions with these, and zeros elsewhere."""
    zeros = dict.fromkeys(("mean", "std", "minimum", "maximum", "q01", "q99"), (0.0, 0.0))
    return ActionStatistics(count=9, **(zeros | given))


def test_a_dimension_is_constant_by_its_ends_and_tiny_by_its_quantiles() -> None:
    names, both = ["a", "b"], [True, True]
    rare = spread(minimum=(5.0, 0.0), maximum=(5.0, 1.0), q01=(5.0, 0.0), q99=(5.0, 0.0))
    assert tiny_ranges(rare, names, both) == {"a": "constant", "b": "tiny range"}
    assert tiny_ranges(rare, names, [False, True]) == {"b": "tiny range"}
    edge = spread(maximum=(1.0, 1.0), q99=(1e-4, 0.99e-4))
    assert tiny_ranges(edge, names, both) == {"b": "tiny range"}
    wide = spread(minimum=(-1.0, 1.0), maximum=(1.0, 3.0), q01=(-1.0, 1.0), q99=(1.0, 3.0))
    assert tiny_ranges(wide, names, both) == {}


def test_a_dimension_varies_by_its_ends() -> None:
    assert spread(minimum=(0.0, -1.0), maximum=(0.0, -0.5)).varies().tolist() == [False, True]


def test_quantiles_lie_between_order_statistics_as_numpys_do() -> None:
    rows = np.array([[0.0], [1.0], [2.0], [4.0], [-8.0]])
    for fraction in (0, 0.1, 0.25, 0.3, 0.5, 0.9, 1):
        np.testing.assert_allclose(Moments.of(rows).quantiles(fraction), np.quantile(rows, fraction, axis=0))


def test_the_largest_numbers_have_quantiles() -> None:
    largest = np.float64(np.finfo(np.float32).max)
    assert Moments.of(np.array([[largest], [largest]])).quantiles(0.5).tolist() == [largest]


def test_rounding_is_to_the_nearest_of_12_bits() -> None:
    steps = 1 + np.arange(0, 64)[:, None] * 2.0**-16
    for value in steps:
        found = float(Moments.of(np.array([value, [-9.0], [9.0]])).quantiles(0.5)[0])
        assert abs(found - value[0]) <= 2**-12 and found == np.floor(value[0] * 2**11 + 0.5) / 2**11


def test_no_rows() -> None:
    assert Moments.empty(2).merged(Moments.of(np.ones((3, 2)))).count == 3
    assert Moments.of(np.ones((3, 2))).merged(Moments.empty(2)).statistics().mean == (1.0, 1.0)
    none = Moments.of(np.empty((0, 2))).statistics()
    assert (none.mean, none.std, none.minimum, none.maximum, none.q01, none.q99) == ((0.0, 0.0),) * 6
    assert Moments.empty(2).statistics().count == 0
