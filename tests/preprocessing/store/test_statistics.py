"""Statistics equal NumPy's, however the rows are cut into shards."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preprocessing.store.statistics import Moments, tiny_ranges

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


def test_no_rows() -> None:
    assert Moments.empty(2).statistics().count == 0
