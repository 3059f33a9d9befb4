from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config.experiment import LoopConfig
from pipelines.training.loop_state import LoopState

VALUES = st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=30)


@given(VALUES, st.integers(1, 5))
def test_patience_counts_measurements_since_the_lowest(values: list[float], patience: int) -> None:
    state, loop = LoopState(), LoopConfig(patience=patience)
    for step, value in enumerate(values):
        state.see({"loss": 0.0}, step, "validation_loss")  # another metric is no measurement
        state.see({"validation_loss": value}, step, "validation_loss")
        finite = [v for v in values[: step + 1] if math.isfinite(v)]
        if finite:
            lowest = values.index(min(finite))
            assert (state.best, state.best_step, state.stale) == (min(finite), lowest, step - lowest)
            assert state.is_stale(loop) == (step - lowest >= patience)
    assert LoopState.from_plain(json.loads(json.dumps(state.to_plain()))) == state


def test_without_patience_nothing_ends_early() -> None:
    assert not LoopState(best=1.0, best_step=0, stale=10**6).is_stale(LoopConfig())


def test_a_gradient_that_is_not_finite_stops_the_run_unless_told_otherwise() -> None:
    with pytest.raises(FloatingPointError, match=r"is nan at step 7: lower optimizer.lr"):
        LoopState().see_norm(math.nan, 7, LoopConfig())


def test_skipped_updates_are_counted_and_too_many_in_a_row_stop_the_run() -> None:
    state, loop = LoopState(), LoopConfig(on_nonfinite="skip", max_skips=2)
    for step, norm in enumerate([math.inf, math.nan, 1.0, math.nan, math.nan]):
        state.see_norm(norm, step, loop)
    assert (state.skipped, state.skipped_in_a_row) == (4, 2)
    with pytest.raises(FloatingPointError, match="3 updates in a row up to step 5"):
        state.see_norm(math.nan, 5, loop)
