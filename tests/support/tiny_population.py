"""A population of two tiny RT-1s, for some seconds."""

from __future__ import annotations

from tuning.population import Population
from tuning.search import RandomSearch
from tuning.space import Uniform
from tuning.sweep import Budget, Objective, Sweep


def sweep() -> Sweep:
    """The sweep of this file's name."""
    return Sweep(
        name="tiny_population",
        recipe="rt1_tiny",
        space={"optimizer.lr": Uniform(low=1e-5, high=1e-2)},
        settings={
            "loop.steps": 4,
            "loop.global_batch": 8,
            "loop.evaluate_every": 2,
            "loop.evaluate_windows": 8,
            "loop.checkpoint_every": 2,
        },
        objectives=(Objective(metric="validation_loss", direction="min"),),
        search=RandomSearch(),
        scheduler=Population(interval_steps=2, resample=0.0),
        budget=Budget(trials=2),
    )
