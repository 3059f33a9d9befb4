"""Learning rate and weight decay of the small RT-1 on the shipped episodes, the worse trials stopped early."""

from __future__ import annotations

from tuning.search import TpeSearch
from tuning.space import Uniform
from tuning.sweep import Asha, Budget, Objective, Sweep


def sweep() -> Sweep:
    """The sweep of this file's name."""
    return Sweep(
        name="rt1_lr_wd",
        recipe="rt1_metaworld",
        space={
            "optimizer.lr": Uniform(low=1e-4, high=2e-2, log=True),
            "optimizer.weight_decay": Uniform(low=1e-3, high=0.3, log=True),
        },
        settings={
            "loop.evaluate_every": 25,
            "loop.checkpoint_every": 25,
            "launch": {"type": "InProcess"},
            "engine": {"type": "TorchEngineConfig", "clip_norm": 1.0},
        },
        objectives=(Objective(metric="validation_loss", direction="min"),),
        search=TpeSearch(),
        scheduler=Asha(grace_steps=25, reduction_factor=3),
        budget=Budget(trials=16),
        concurrency=2,
    )
