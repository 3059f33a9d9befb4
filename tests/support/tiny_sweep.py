"""A sweep of some seconds over the tiny RT-1; tests lay flags over it."""

from __future__ import annotations

from tuning.search import GridSearch
from tuning.space import Choice
from tuning.sweep import Asha, Budget, Objective, Sweep


def sweep() -> Sweep:
    """The sweep of this file's name."""
    return Sweep(
        name="tiny_sweep",
        recipe="rt1_tiny",
        # The good ones first: early stopping compares with what has come so far.
        space={"optimizer.lr": Choice(values=(3e-3, 1e-6, 1e30))},
        settings={
            "loop.steps": 4,
            "loop.global_batch": 8,
            "loop.evaluate_every": 2,
            "loop.evaluate_windows": 8,
            "loop.checkpoint_every": 2,
        },
        objectives=(Objective(metric="validation_loss", direction="min"),),
        search=GridSearch(),
        scheduler=Asha(grace_steps=2, reduction_factor=2),
        budget=Budget(trials=3),
    )
