from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.loading.windows import PADDING, StepIndex, window_rows

LENGTHS = st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=4).filter(lambda s: sum(map(sum, s)))


def index_of(shards: list[list[int]]) -> StepIndex:
    return StepIndex.from_lengths([np.array(lengths, np.int32) for lengths in shards])


@given(LENGTHS, st.integers(1, 8), st.integers(1, 4))
def test_a_window_is_the_end_of_its_episode_up_to_its_row(shards: list[list[int]], num_steps: int, stride: int) -> None:
    index = index_of(shards)
    rows = np.arange(index.num_rows)
    windows = window_rows(index, rows, num_steps, stride)
    episodes, steps = index.episodes(rows)
    for row, window in zip(rows, windows, strict=True):
        real = window[window != PADDING]
        reached = min(num_steps - 1, steps[row] // stride)
        assert list(real) == list(range(row - reached * stride, row + 1, stride))
        assert (window[: num_steps - len(real)] == PADDING).all()
        assert (episodes[real] == episodes[row]).all()


@given(LENGTHS)
def test_rows_are_located_in_shard_and_episode(shards: list[list[int]]) -> None:
    index = index_of(shards)
    expected = [
        (shard, sum(lengths[:number]) + step, step)
        for shard, lengths in enumerate(shards)
        for number, length in enumerate(lengths)
        for step in range(length)
    ]
    rows = np.arange(index.num_rows)
    shard, inside = index.locate(rows)
    _, step = index.episodes(rows)
    assert list(zip(shard, inside, step, strict=True)) == expected
    assert index.num_episodes == sum(map(len, shards))


def test_worked_example() -> None:
    windows = window_rows(index_of([[3, 2]]), np.array([0, 2, 3, 4]), 3)
    assert windows.tolist() == [[-1, -1, 0], [0, 1, 2], [-1, -1, 3], [-1, 3, 4]]


def test_no_episodes() -> None:
    index = StepIndex.from_lengths([])
    assert (index.num_rows, index.num_episodes) == (0, 0)
    assert index_of([[], [2]]).locate(np.array([0, 1]))[0].tolist() == [1, 1]
    assert index_of([[3, 2]]).shard_starts.dtype == index_of([[3, 2]]).episode_starts.dtype == np.int64
