"""A population of two tiny RT-1s, for some seconds."""

from __future__ import annotations

from dataclasses import replace

from tests.support import tiny_sweep
from tuning.population import Population
from tuning.search import RandomSearch
from tuning.space import Uniform
from tuning.sweep import Budget, Sweep


def sweep() -> Sweep:
    """The sweep of this file's name."""
    return replace(
        tiny_sweep.sweep(),
        name="tiny_population",
        space={"optimizer.lr": Uniform(low=1e-5, high=1e-2)},
        search=RandomSearch(),
        scheduler=Population(interval_steps=2, resample=0.0),
        budget=Budget(trials=2),
    )
