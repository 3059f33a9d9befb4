from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config.schedule import ConstantSchedule, CosineSchedule

STEPS = st.integers(1, 10_000)


@given(warmup=st.integers(0, 50), num_steps=STEPS, step=STEPS)
def test_warm_up_rises_to_the_peak_and_stays(warmup: int, num_steps: int, step: int) -> None:
    schedule = ConstantSchedule(warmup_steps=warmup)
    rising = [schedule.factor(number, num_steps) for number in range(warmup + 1)]
    assert rising == sorted(rising) and rising[0] > 0 and rising[-1] == 1
    assert schedule.factor(warmup + step, num_steps) == 1


@given(warmup=st.integers(0, 50), final=st.floats(0, 1), length=st.integers(1, 500))
def test_cosine_falls_from_the_peak_to_its_final_factor(warmup: int, final: float, length: int) -> None:
    schedule, num_steps = CosineSchedule(warmup_steps=warmup, final_factor=final), warmup + length + 1
    falling = [schedule.factor(step, num_steps) for step in range(warmup, num_steps)]
    assert falling[0] == pytest.approx(1) and falling[-1] == pytest.approx(final)
    assert all(later <= earlier for earlier, later in itertools.pairwise(falling))
    assert schedule.factor(num_steps + 100, num_steps) == pytest.approx(final)  # beyond the end, as at the end


def test_cosine_is_halfway_in_the_middle() -> None:
    assert CosineSchedule(final_factor=0.2).factor(50, 101) == pytest.approx(0.6)
