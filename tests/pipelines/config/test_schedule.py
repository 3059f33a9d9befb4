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


@pytest.mark.parametrize("schedule", [ConstantSchedule(warmup_steps=3), CosineSchedule(warmup_steps=3)])
def test_warm_up_is_a_straight_line_that_reaches_the_peak_after_it(schedule: ConstantSchedule | CosineSchedule) -> None:
    assert [schedule.factor(step, 1000) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_the_cosine_ends_at_the_last_step_and_not_before() -> None:
    schedule = CosineSchedule(warmup_steps=2, final_factor=0.1)
    assert schedule.factor(9, 10) == pytest.approx(0.1) and schedule.factor(8, 10) > 0.13
    assert schedule.factor(2, 3) == 1  # a run of warm-up and one step divides by nothing


def test_a_final_factor_above_the_peak_rises_to_it() -> None:
    assert CosineSchedule(final_factor=2.0).factor(10, 11) == pytest.approx(2)


@pytest.mark.parametrize("kind", [ConstantSchedule, CosineSchedule])
def test_a_negative_warm_up_is_refused(kind: type[ConstantSchedule | CosineSchedule]) -> None:
    with pytest.raises(ValueError, match=r"schedule.warmup_steps must be at least 0, got -1"):
        kind(warmup_steps=-1)


@pytest.mark.parametrize("factor", [-0.1, float("inf"), float("nan")])
def test_a_final_factor_that_is_no_share_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=rf"schedule.final_factor must be finite and at least 0, got {factor}"):
        CosineSchedule(final_factor=factor)
