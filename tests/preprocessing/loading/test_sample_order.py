from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.loading.sample_order import SampleOrder

ORDERS = st.builds(
    SampleOrder,
    num_samples=st.integers(1, 700),
    seed=st.integers(0, 2**32),
    lanes=st.sampled_from([1, 6, 24, 48]),
    block_rows=st.integers(1, 40),
    interleaved_blocks=st.integers(1, 8),
)


@settings(max_examples=60, deadline=None)
@given(ORDERS, st.integers(0, 3))
def test_an_epoch_visits_every_row_once(order: SampleOrder, epoch: int) -> None:
    _, rows = order.rows(epoch * order.num_samples, order.num_samples)
    assert sorted(rows) == list(range(order.num_samples))


@settings(max_examples=40, deadline=None)
@given(ORDERS, st.integers(0, 2000), st.integers(1, 300), st.sampled_from([1, 2, 3, 6]))
def test_ranks_partition_the_sequence_of_one_rank(order: SampleOrder, first: int, count: int, world: int) -> None:
    if order.lanes % world:
        return
    ids, rows = order.rows(first, count)
    parts = [order.rows(first, count, rank=rank, world_size=world) for rank in range(world)]
    joined_ids = np.concatenate([part[0] for part in parts])
    joined_rows = np.concatenate([part[1] for part in parts])
    places = np.argsort(joined_ids)
    assert (joined_ids[places] == ids).all() and (joined_rows[places] == rows).all()


@settings(max_examples=40, deadline=None)
@given(ORDERS, st.integers(0, 1000), st.integers(1, 100), st.integers(1, 100))
def test_continuing_from_a_position_continues_the_sequence(order: SampleOrder, at: int, first: int, then: int) -> None:
    whole = order.rows(at, first + then)[1]
    assert (np.concatenate([order.rows(at, first)[1], order.rows(at + first, then)[1]]) == whole).all()


def test_seeds_and_epochs_give_different_orders() -> None:
    order, other = SampleOrder(num_samples=500, seed=0), SampleOrder(num_samples=500, seed=1)
    first = order.rows(0, 500)[1]
    assert (first != other.rows(0, 500)[1]).mean() > 0.9
    assert (first != order.rows(500, 500)[1]).mean() > 0.9
    assert (first != np.arange(500)).mean() > 0.9


@pytest.mark.parametrize("episode_steps", [5, 40])
@pytest.mark.parametrize(("batch", "interleaved_blocks"), [(32, 3), (64, 3), (96, 4), (256, 11)])
def test_a_batch_holds_nearly_as_many_episodes_as_under_a_full_shuffle(
    batch: int, interleaved_blocks: int, episode_steps: int
) -> None:
    order = SampleOrder(
        num_samples=20_000, seed=0, interleaved_blocks=interleaved_blocks
    )  # as the loader asks for that batch
    count = 8000 // batch * batch
    ids = order.rows(0, count)[1].reshape(-1, batch) // episode_steps
    shuffled = np.random.default_rng(0).permutation(20_000)[:count].reshape(-1, batch) // episode_steps
    distinct = np.mean([len(np.unique(row)) for row in ids])
    assert distinct > 0.9 * np.mean([len(np.unique(row)) for row in shuffled])


def test_blocks_begin_where_reading_is_cheap() -> None:
    starts = np.array([0, 128, 256, 300, 428, 500])
    order = SampleOrder(num_samples=600, seed=0, lanes=1, block_starts=starts)
    bounds = order._bounds  # type: ignore[attr-defined]
    assert set(starts) <= set(bounds.tolist()) and np.diff(bounds).max() <= 128


def test_a_billion_samples_cost_nothing_to_name() -> None:
    order = SampleOrder(num_samples=10**9, seed=0)
    ids, rows = order.rows(987_654_321, 256)
    assert len(np.unique(rows)) == 256 and rows.max() < 10**9 and ids[0] == 987_654_321


def test_a_world_size_that_does_not_fit_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"5 workers cannot share 48 lanes evenly: use one of \[1, 2, 3, 4, 6"):
        SampleOrder(num_samples=10, seed=0).rows(0, 10, rank=0, world_size=5)


def digest(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16]


def test_the_order_of_runs_that_exist_stays_as_it_is() -> None:
    """A checkpoint holds a position only: with another order a resumed run would see samples twice or never."""
    order = SampleOrder(num_samples=1000, seed=3, lanes=6, block_rows=16, interleaved_blocks=3)
    assert digest(order.rows(0, 2500)[1]) == "8f16f42ce997b580"
    starts = SampleOrder(num_samples=700, seed=1, lanes=4, block_starts=np.array([0, 100, 350, 351, 600]))
    assert digest(starts.rows(0, 1500)[1]) == "c45064d3f21e3e16"
    few = SampleOrder(num_samples=10, seed=0).rows(0, 12)[1]
    assert few.tolist() == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1, 9, 1]
    many = SampleOrder(num_samples=10**9, seed=0).rows(987_654_321, 4)[1]
    assert many.tolist() == [166229782, 239601827, 995421912, 929327875]


@pytest.mark.parametrize("name", ["num_samples", "lanes", "block_rows", "interleaved_blocks"])
def test_sizes_begin_at_one(name: str) -> None:
    SampleOrder(**{"num_samples": 1, "seed": 0, name: 1})
    with pytest.raises(ValueError, match=rf"sample order: {name} must be at least 1, got 0"):
        SampleOrder(**{"num_samples": 1, "seed": 0, name: 0})


def test_lanes_are_filled_by_a_block_each() -> None:
    assert [SampleOrder(num_samples=n, seed=0, lanes=4, block_rows=5).fills_lanes for n in (19, 20)] == [False, True]
