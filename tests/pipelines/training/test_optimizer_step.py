"""Gradient norms that are looked at some steps later say the same as those looked at once."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from cluster.context import LocalContext
from pipelines.catalogue import load_recipe
from pipelines.training.loop_state import LoopState
from pipelines.training.optimizer_step import OptimizerStep

NORMS = [1.0, math.nan, 2.0, math.inf, math.nan, 3.0]


class _Engine:
    """Every micro-batch is an update; its norms are given."""

    def __init__(self) -> None:
        self.norms = iter(NORMS)

    def set_learning_rate(self, learning_rate: float) -> None: ...

    def forward_backward(self, batch: Any) -> torch.Tensor:
        return torch.zeros(())

    def step(self) -> torch.Tensor:
        return torch.tensor(next(self.norms))


class _Metrics:
    def count(self, batch: Any) -> None: ...

    def add(self, batch: Any, loss: Any, row_losses_B: Any) -> None: ...


def steps_of(experiment: Any, *, waits: bool) -> OptimizerStep:
    parts: dict[str, Any] = {"engine": _Engine(), "model": None, "metrics": _Metrics(), "samples": None}
    made = OptimizerStep(experiment, LocalContext("cpu"), **parts)
    made._looks_later = waits  # as on a GPU
    return made


def experiment(**loop: Any) -> Any:
    recipe = load_recipe("rt1_tiny")
    return replace(recipe, loop=replace(recipe.loop, **loop))


def batches() -> Any:
    return ({"sample_id": torch.tensor([number])} for number in itertools.count())


@pytest.mark.parametrize("every", [1, 2, 6])
def test_skipped_steps_are_counted_alike(every: int, caplog: pytest.LogCaptureFixture) -> None:
    made = experiment(on_nonfinite="skip", max_skips=2)
    at_once, later = LoopState(), LoopState()
    first, second, stream = steps_of(made, waits=False), steps_of(made, waits=True), (batches(), batches())
    for step in range(1, 7):
        first.take(step, stream[0], at_once)
        second.take(step, stream[1], later)
        assert later.skipped <= at_once.skipped
        if step % every == 0:
            assert second.settle(later) == pytest.approx(first.settle(at_once), nan_ok=True) and later == at_once
    assert at_once.skipped == 3
    said = [record.message for record in caplog.records]
    assert sum("step 4 is skipped, its gradient norm is inf; samples [3]" in line for line in said) == 2


def test_a_run_that_is_to_stop_stops_at_the_look_and_names_the_step() -> None:
    made, state, stream = steps_of(experiment(), waits=True), LoopState(), batches()
    for step in range(1, 4):
        made.take(step, stream, state)
    with pytest.raises(FloatingPointError, match="the gradient norm is nan at step 2"):
        made.settle(state)
