"""Learning rate and weight decay of the small RT-1, compared by what counts: success in Meta-World."""

from __future__ import annotations

from tuning.search import TpeSearch
from tuning.space import Uniform
from tuning.sweep import Budget, Objective, Sweep


def sweep() -> Sweep:
    """The sweep of this file's name, on demonstrations of its tasks: the shipped sample has them."""
    return Sweep(
        name="rt1_success",
        recipe="rt1_metaworld",
        space={
            "optimizer.lr": Uniform(low=3e-4, high=6e-3, log=True),
            "optimizer.weight_decay": Uniform(low=1e-2, high=0.3, log=True),
        },
        settings={
            "launch": {"type": "InProcess"},
            "engine": {"type": "TorchEngineConfig", "clip_norm": 1.0},
        },
        objectives=(Objective(metric="success", direction="max"),),
        search=TpeSearch(),
        budget=Budget(trials=8),
        concurrency=2,
        env="metaworld:faucet-open,faucet-close,drawer-open,button-press",
        env_episodes=10,
    )
