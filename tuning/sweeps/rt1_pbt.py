"""A population of small RT-1s whose learning rate and weight decay change while they train."""

from __future__ import annotations

from tuning.population import Population
from tuning.search import RandomSearch
from tuning.space import Uniform
from tuning.sweep import Budget, Objective, Sweep


def sweep() -> Sweep:
    """The sweep of this file's name."""
    return Sweep(
        name="rt1_pbt",
        recipe="rt1_metaworld",
        space={
            "optimizer.lr": Uniform(low=1e-4, high=2e-2, log=True),
            "optimizer.weight_decay": Uniform(low=1e-3, high=0.3, log=True),
        },
        # The population makes its own schedule of the learning rate.
        settings={
            "schedule": {"type": "ConstantSchedule", "warmup_steps": 20},
            "loop.evaluate_every": 50,
            "loop.checkpoint_every": 50,
            "launch": {"type": "InProcess"},
            "engine": {"type": "TorchEngineConfig", "clip_norm": 1.0},
        },
        objectives=(Objective(metric="validation_loss", direction="min"),),
        search=RandomSearch(),
        scheduler=Population(interval_steps=50),
        budget=Budget(trials=8),
        concurrency=2,
    )
