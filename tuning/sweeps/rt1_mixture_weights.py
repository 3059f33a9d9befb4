"""How much of a run's samples each of two datasets of Open X-Embodiment gives: fractal's weight is 1, Bridge's varies.

Needs the stores fractal20220817_data and bridge_dataset, to train and to validate on.
"""

from __future__ import annotations

from tuning.search import TpeSearch
from tuning.space import Uniform
from tuning.sweep import Asha, Budget, Objective, Sweep, TrialResources


def sweep() -> Sweep:
    """The sweep of this file's name."""
    return Sweep(
        name="rt1_mixture_weights",
        recipe="rt1_fractal",
        space={"mixture.weights.bridge_dataset": Uniform(low=0.05, high=5.0, log=True)},
        settings={
            "mixture.weights.fractal20220817_data": 1.0,
            "loop.steps": 30_000,
            "loop.evaluate_every": 1000,
            "loop.checkpoint_every": 1000,
        },
        objectives=(Objective(metric="validation_loss", direction="min"),),
        search=TpeSearch(startup_points=4),
        scheduler=Asha(grace_steps=3000, reduction_factor=3),
        budget=Budget(trials=12),
        resources=TrialResources(gpus=1),
    )
