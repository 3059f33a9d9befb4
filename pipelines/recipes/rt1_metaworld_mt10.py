"""The full RT-1 on ten Meta-World tasks whose goal is in the picture, for one GPU; not trained yet.

The tasks are `mt10_visible` (`preprocessing/simulation/task_sets.py`). Meta-World's own MT10 has reach, push and
pick-place, whose goals are free points in space: nothing in a picture tells where to go, so they are replaced by
faucet-open, faucet-close and door-lock. Batch, rate and steps are guesses from the small `rt1_metaworld_mt6`: some 35
passes over 3,000 demonstrations of a dozen steps. docs/closed_loop.md has the commands.
"""

from __future__ import annotations

from cluster.engine import TorchEngineConfig
from cluster.launch import RayLaunch
from pipelines.config.experiment import Experiment, LoopConfig
from pipelines.config.optimizer import AdamWConfig
from pipelines.config.schedule import CosineSchedule
from rt_models.rt1 import RT1Config
from rt_models.spec import Quantiles


def recipe() -> Experiment:
    """The experiment of this file's name."""
    return Experiment(
        name="rt1_metaworld_mt10",
        model=RT1Config.rt1(),
        scaling=Quantiles(),
        optimizer=AdamWConfig(lr=3e-4, weight_decay=0.05),
        schedule=CosineSchedule(warmup_steps=500, final_factor=0.02),
        engine=TorchEngineConfig(precision="bf16", clip_norm=1.0),
        launch=RayLaunch(num_workers=1, use_gpu=True),
        loop=LoopConfig(
            steps=10_000,
            global_batch=128,
            micro_batch=32,
            checkpoint_every=1000,
            log_every=50,
            evaluate_every=1000,
        ),
    )
