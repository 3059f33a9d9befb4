"""A small RT-1 on the shipped Meta-World episodes: minutes on two CPU cores, two Ray workers under ZeRO-1."""

from __future__ import annotations

from cluster.engine import DeepSpeedEngineConfig
from cluster.launch import RayLaunch
from cluster.zero import ZeroConfig
from pipelines.config.experiment import Experiment, LoopConfig
from pipelines.config.optimizer import AdamWConfig
from pipelines.config.schedule import CosineSchedule
from rt_models.rt1 import RT1Config
from rt_models.spec import Quantiles


def recipe() -> Experiment:
    """The experiment of this file's name."""
    return Experiment(
        name="rt1_metaworld",
        model=RT1Config.small(),
        scaling=Quantiles(),
        optimizer=AdamWConfig(lr=2e-3, weight_decay=0.05),
        schedule=CosineSchedule(warmup_steps=20, final_factor=0.02),
        engine=DeepSpeedEngineConfig(zero=ZeroConfig(stage=1), clip_norm=1.0),
        launch=RayLaunch(num_workers=2),
        loop=LoopConfig(
            steps=160, global_batch=32, micro_batch=16, checkpoint_every=80, log_every=5, evaluate_every=40
        ),
    )
