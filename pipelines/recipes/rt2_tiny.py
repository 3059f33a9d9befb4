"""A small RT-2 co-fine-tuned on the shipped Meta-World episodes and easy-VQA: minutes on two CPU cores."""

from __future__ import annotations

from cluster.engine import DeepSpeedEngineConfig
from cluster.launch import RayLaunch
from cluster.zero import ZeroConfig
from pipelines.config.experiment import Experiment, LoopConfig
from pipelines.config.optimizer import AdamWConfig
from pipelines.config.schedule import CosineSchedule
from pipelines.training.co_fine_tuning import CoFineTuningConfig
from rt_models.rt2 import RT2Config
from rt_models.spec import Quantiles


def recipe() -> Experiment:
    """The experiment of this file's name."""
    return Experiment(
        name="rt2_tiny",
        model=RT2Config.tiny(),
        scaling=Quantiles(),
        co_fine_tuning=CoFineTuningConfig(robot_share=0.5),
        optimizer=AdamWConfig(lr=1e-3, weight_decay=0.05),
        schedule=CosineSchedule(warmup_steps=60, final_factor=0.02),
        engine=DeepSpeedEngineConfig(zero=ZeroConfig(stage=1), clip_norm=1.0),
        launch=RayLaunch(num_workers=2),
        loop=LoopConfig(steps=600, global_batch=96, micro_batch=24, checkpoint_every=200, log_every=10),
    )
