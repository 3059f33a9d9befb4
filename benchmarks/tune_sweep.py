"""The sweep of `tune_asha.py` and `tune_overhead.py`: the learning rate of the tiny RT-1 on the shipped episodes."""

from __future__ import annotations

from tuning.search import RandomSearch
from tuning.space import Uniform
from tuning.sweep import Asha, Budget, Objective, Sweep

STEPS = 12


def sweep() -> Sweep:
    """The sweep of this file's name."""
    return Sweep(
        name="tune_sweep",
        recipe="rt1_tiny",
        space={"optimizer.lr": Uniform(low=1e-5, high=3e-1, log=True)},
        settings={
            "loop.steps": STEPS,
            "loop.log_every": 2,
            "loop.evaluate_every": 2,
            "loop.evaluate_windows": 16,
            "loop.checkpoint_every": 4,
        },
        objectives=(Objective(metric="validation_loss", direction="min"),),
        search=RandomSearch(),
        scheduler=Asha(grace_steps=2, reduction_factor=3),
        budget=Budget(trials=9),
        concurrency=2,
    )
