"""Three capacities hold every batch, and none of three would leave less padding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.loading.fixed_shapes import Capacities, choose_capacities
from preprocessing.loading.sample_order import SampleOrder
from preprocessing.loading.window_reader import WindowReader
from preprocessing.loading.windows import StepIndex, most_images, window_rows


def padded(sizes: list[int], capacities: tuple[int, ...]) -> int:
    return sum(min(capacity for capacity in capacities if capacity >= size) for size in sizes)


@settings(max_examples=60)
@given(sizes=st.lists(st.integers(1, 12), max_size=12), largest=st.integers(12, 15))
def test_no_three_capacities_leave_less_padding(sizes: list[int], largest: int) -> None:
    chosen = choose_capacities(sizes, largest)
    assert chosen.sizes[-1] == largest and len(chosen.sizes) <= 3 and list(chosen.sizes) == sorted(set(chosen.sizes))
    least = min(padded(sizes, (a, b, largest)) for a, b in itertools.combinations_with_replacement(range(1, 16), 2))
    assert sum(chosen.holding(size) for size in sizes) == least
    assert choose_capacities(sizes[::-1], largest) == chosen


def test_a_size_above_the_largest_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch has size 7, and the largest capacity is 6"):
        choose_capacities([3, 7], 6)
    with pytest.raises(ValueError, match="a batch has size 7, and the largest capacity is 6"):
        Capacities(sizes=(3, 6), sizes_seen=()).holding(7)


@pytest.mark.parametrize(
    ("windows", "segment", "steps", "episode", "most"),
    [
        (32, 1, 6, 40, 0.03),
        (16, 1, 6, 40, 0.03),
        (96, 12, 6, 40, 0.015),
        (16, 1, 15, 40, 0.06),  # rt1x_finetune: no three capacities leave less than 5.8 %
        (16, 1, 15, 60, 0.045),
    ],
)
def test_long_episodes_waste_little(windows: int, segment: int, steps: int, episode: int, most: float) -> None:
    """Every crop another. Capacities chosen from as many micro-batches as a run counts."""
    sizes = image_counts(windows, segment, steps, episode, WindowReader.counted)
    capacities = choose_capacities(sizes, most_images(windows, segment, num_steps=steps))
    assert capacities.waste < most


def test_the_micro_batches_counted_speak_for_those_after_them() -> None:
    sizes = image_counts(16, 1, 6, 40, 1500)
    capacities = choose_capacities(sizes[: WindowReader.counted], 16 * 6)
    rest = sizes[WindowReader.counted :]
    waste = 1 - sum(rest) / sum(capacities.holding(size) for size in rest)
    assert waste == pytest.approx(capacities.waste, abs=0.005)


def image_counts(windows: int, segment: int, steps: int, episode: int, count: int) -> list[int]:
    """Images of the first micro-batches over episodes of one length."""
    index = StepIndex.from_lengths([np.full(2000, episode)])
    order = SampleOrder(num_samples=-(-index.num_rows // segment), seed=0, interleaved_blocks=3)
    sizes = []
    for number in range(count):
        ids = np.arange(number * windows // segment, (number + 1) * windows // segment)
        ends = (order.rows_of(ids)[:, None] * segment + np.arange(segment)).ravel()
        rows_BT = window_rows(index, np.where(ends < index.num_rows, ends, -1), steps)
        identity_BT = rows_BT + index.num_rows * np.arange(len(ids)).repeat(segment)[:, None]
        sizes.append(len(np.unique(identity_BT[rows_BT >= 0])))
    return sizes
