"""A check that data, labels and model fit together: a small RT-1 that learns 25 real Bridge episodes by heart."""

from __future__ import annotations

from dataclasses import replace

from cluster.engine import TorchEngineConfig
from pipelines.config.experiment import Experiment, InProcess, LoopConfig
from pipelines.config.optimizer import AdamWConfig
from pipelines.config.schedule import CosineSchedule
from rt_models.rt1 import RT1Config
from rt_models.spec import Quantiles
from rt_models.vision.image_inputs import InputConfig


def recipe() -> Experiment:
    """The experiment of this file's name."""
    return Experiment(
        name="rt1_bridge_overfit",
        model=replace(RT1Config.small(), input=InputConfig(image_size=64, crop="none")),
        scaling=Quantiles(),
        optimizer=AdamWConfig(lr=2e-3, weight_decay=0.0),
        schedule=CosineSchedule(warmup_steps=20, final_factor=0.01),
        engine=TorchEngineConfig(clip_norm=1.0),
        launch=InProcess(),
        loop=LoopConfig(steps=600, global_batch=16, micro_batch=16, checkpoint_every=300, log_every=25),
    )
