"""Laws of a generation: the best stay, the worst take over one of the best, within the space."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.population import Population, takeovers
from tuning.space import Integer, Space, Uniform

SPACE: Space = {"lr": Uniform(low=1e-4, high=1e-1, log=True), "n": Integer(low=1, high=8)}
scores = st.lists(st.floats(-5, 5) | st.just(math.nan), min_size=2, max_size=9)


def members(values: list[float]) -> dict[int, tuple[float, dict[str, float]]]:
    return {number: (value, {"lr": 0.001 * (number + 1), "n": 3}) for number, value in enumerate(values)}


@given(scores, st.sampled_from(["min", "max"]), st.floats(0.05, 0.5), st.integers(0, 99))
def test_the_worst_take_over_the_best(values: list[float], direction: str, quantile: float, seed: int) -> None:
    config = Population(interval_steps=10, quantile=quantile)
    chosen = takeovers(config, SPACE, members(values), direction=direction, seed=seed)
    assert chosen == takeovers(config, SPACE, members(values), direction=direction, seed=seed)
    assert len(chosen) == min(math.ceil(len(values) * quantile), len(values) // 2)
    parents = {takeover.parent for takeover in chosen.values()}
    assert not parents & chosen.keys()
    sign = 1 if direction == "min" else -1
    kept = [sign * values[n] for n in range(len(values)) if n not in chosen and not math.isnan(values[n])]
    for number, takeover in chosen.items():
        assert 1e-4 <= takeover.parameters["lr"] <= 1e-1 and 1 <= takeover.parameters["n"] <= 8
        if not math.isnan(values[number]):
            assert all(sign * values[number] >= other for other in kept)


def test_what_is_taken_over_is_the_parents_setting_times_or_divided_by_the_factor() -> None:
    config = Population(interval_steps=10, factor=2, resample=0.0)
    chosen = takeovers(config, SPACE, members([0.0, 1.0, 2.0, 3.0]), direction="min", seed=3)
    assert list(chosen) == [3] and chosen[3].parent == 0
    assert chosen[3].parameters["lr"] in (pytest.approx(0.0005), pytest.approx(0.002))
    assert chosen[3].parameters["n"] in (1, 6)


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 300))
def test_generations_end_at_multiples_and_at_the_last_step(step: int, interval: int, num_steps: int) -> None:
    end = Population(interval_steps=interval).pause(step, num_steps)
    assert end <= num_steps and (end == num_steps or (end % interval == 0 and 0 < end - step <= interval))
