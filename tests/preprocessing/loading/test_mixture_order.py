"""The stores' turns in a mixture: quotas at every prefix, the same from any position, every lane its part."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.loading.mixture_order import RESOLUTION, MixtureOrder, whole_weights

WEIGHTS = st.lists(st.integers(1, 60), min_size=1, max_size=9)
LANES = st.sampled_from([1, 6, 48])


@settings(max_examples=60, deadline=None)
@given(weights=WEIGHTS, lanes=LANES)
def test_every_prefix_is_within_one_sample_of_the_asked_shares(weights: list[int], lanes: int) -> None:
    turns = MixtureOrder(weights, lanes).take(0, 3000)
    drawn = np.cumsum(turns.stores[:, None] == np.arange(len(weights)), axis=0)
    asked = np.arange(1, 3001)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(drawn - asked).max() < 1


@pytest.mark.parametrize("weights", [[0.1234567, 0.7654321], [math.pi, math.e, 1], [2**0.5, 3**0.5, 5**0.5, 7**0.5]])
def test_weights_that_are_no_small_ratios_keep_their_shares_too(weights: list[float]) -> None:
    turns = MixtureOrder(weights, 48).take(0, 200_000)
    drawn = np.cumsum(turns.stores[:, None] == np.arange(len(weights)), axis=0)
    asked = np.arange(1, 200_001)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(drawn - asked).max() < 1


@settings(max_examples=60, deadline=None)
@given(weights=WEIGHTS, lanes=LANES, first=st.integers(0, 10**9), cut=st.integers(0, 200))
def test_a_position_is_enough_to_go_on(weights: list[int], lanes: int, first: int, cut: int) -> None:
    whole, order = MixtureOrder(weights, lanes).take(first, 200), MixtureOrder(weights, lanes)
    parts = order.take(first, cut), order.take(first + cut, 200 - cut)
    fresh = MixtureOrder(weights, lanes).take(first + cut, 200 - cut)
    for name in ("stores", "lanes", "in_store", "in_lane"):
        assert (np.concatenate([getattr(part, name) for part in parts]) == getattr(whole, name)).all()
        assert (getattr(fresh, name) == getattr(parts[1], name)).all()


@settings(max_examples=40, deadline=None)
@given(weights=WEIGHTS, lanes=st.sampled_from([6, 12]), whole=st.integers(0, 3))
def test_turns_count_what_came_before(weights: list[int], lanes: int, whole: int) -> None:
    turns = MixtureOrder(weights, lanes).take(0, (whole + 1) * 500)
    for name, cells in (("in_store", turns.stores), ("in_lane", turns.stores * lanes + turns.lanes)):
        for cell in np.unique(cells):
            assert (getattr(turns, name)[cells == cell] == np.arange((cells == cell).sum())).all()


@given(lanes=st.sampled_from([6, 24, 48]), world=st.sampled_from([1, 2, 3, 6]), first=st.integers(0, 10**6))
def test_aligned_samples_go_to_all_ranks_alike(lanes: int, world: int, first: int) -> None:
    turns = MixtureOrder([1, 1], lanes).take(first * world, 4 * world)
    assert (np.sort(turns.lanes.reshape(4, world) % world, axis=1) == np.arange(world)).all()


@pytest.mark.parametrize("weights", [[1, 1], [2, 1, 1], [47, 1], [3, 45], [0.66, 0.34], [150, 50, 30, 20, 5, 3]])
@pytest.mark.parametrize("world", [2, 3, 8])
def test_no_rank_gets_one_store_only(weights: list[float], world: int) -> None:
    turns = MixtureOrder(weights, 48).take(0, 48 * 200)
    shares = np.array(weights) / sum(weights)
    for rank in range(world):
        own = np.bincount(turns.stores[turns.lanes % world == rank], minlength=len(weights)) * world / (48 * 200)
        assert own == pytest.approx(shares, rel=0.35)


@given(WEIGHTS.filter(lambda weights: len(weights) > 1))
def test_scale_does_not_matter(weights: list[int]) -> None:
    divisor = math.gcd(*weights)
    assert whole_weights(weights) == whole_weights([weight / 4 for weight in weights])
    assert whole_weights(weights) == tuple(weight // divisor for weight in weights)


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12))
def test_any_weights_have_a_short_period_close_to_them(weights: list[float]) -> None:
    whole = whole_weights(weights)
    assert sum(whole) <= RESOLUTION and min(whole) >= 1
    error = np.array(whole) / sum(whole) - np.array(weights) / sum(weights)
    assert np.abs(error).max() <= len(weights) / RESOLUTION


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -2.0], [1, float("nan")], [float("inf")]])
def test_weights_that_are_no_shares_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="must be above 0 and finite"):
        whole_weights(weights)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_two_stores_in_equal_parts_alternate_on_every_rank(world: int) -> None:
    """Not only on average: a strict alternation would give each of two ranks 24 samples in a row of one store."""
    turns = MixtureOrder([1, 1], 48).take(0, 48 * 100)
    for rank in range(world):
        own = turns.stores[turns.lanes % world == rank]
        changes = np.flatnonzero(np.diff(own, prepend=-1, append=-1))
        assert np.diff(changes).max() <= 8


@pytest.mark.parametrize(
    ("weights", "lanes", "whole", "digest"),
    [
        ([1], 6, (1,), "d003d6fb12771b27"),
        ([2, 1], 6, (2, 1), "fd01cc3e826d032f"),
        ([3, 1, 1], 48, (3, 1, 1), "381adb5d78ab2495"),
        ([150, 50, 30, 20, 5, 3], 48, (150, 50, 30, 20, 5, 3), "8e611f12da2b59fe"),
        ([0.1234567, 0.7654321], 6, (5, 31), "b688d7786e4c3f05"),
        ([1e-6, 1], 6, (1, 65535), "dd368543b3724991"),
    ],
)
def test_the_turns_of_runs_that_exist_stay_as_they_are(
    weights: list[float], lanes: int, whole: tuple[int, ...], digest: str
) -> None:
    """A checkpoint holds a position only: with other turns a resumed run would see samples twice or never."""
    order = MixtureOrder(weights, lanes)
    taken = order.take(0, 3000), order.take(10**9, 50)
    columns = [
        np.concatenate([getattr(part, name) for part in taken]) for name in ("stores", "lanes", "in_store", "in_lane")
    ]
    assert whole_weights(weights) == whole
    assert hashlib.sha256(np.stack(columns).astype("<i8").tobytes()).hexdigest()[:16] == digest


def test_a_refusal_names_the_weight() -> None:
    with pytest.raises(ValueError, match=r"above 0 and finite, got -2\.0$"):
        whole_weights([1, -2.0, 0])
    with pytest.raises(ValueError, match=r"above 0 and finite, got none$"):
        whole_weights([])


def test_the_longest_exact_period_is_the_resolution_itself() -> None:
    assert whole_weights([RESOLUTION - 1, 1]) == (RESOLUTION - 1, 1)
    assert sum(whole_weights([RESOLUTION, 1])) <= RESOLUTION
