"""RT-1-X fine-tuned on another robot: `rtp train rt1x_finetune --init models/rt1x ...`, after rtp import-weights.

The released weights fix the model's settings. For a dataset among RT-1-X's own, `--scaling RT1X` keeps the scaling of
its actions, as rtp import-weights does. BatchNorm keeps the statistics they were trained with: a small batch of one
robot's frames would be a poor measure of them.
"""

from __future__ import annotations

from dataclasses import replace

from cluster.engine import DeepSpeedEngineConfig
from cluster.launch import RayLaunch
from cluster.zero import ZeroConfig
from pipelines.config.experiment import Experiment, LoopConfig
from pipelines.config.optimizer import AdamConfig
from pipelines.config.schedule import CosineSchedule
from rt_models.blocks.batch_norm import BatchNormConfig
from rt_models.rt1 import RT1Config
from rt_models.spec import Identity
from rt_models.vision.efficientnet import EfficientNetConfig


def recipe() -> Experiment:
    """The experiment of this file's name."""
    backbone = EfficientNetConfig(batch_norm=BatchNormConfig(statistics="frozen"))
    return Experiment(
        name="rt1x_finetune",
        model=replace(RT1Config.rt1x(), backbone=backbone),
        scaling=Identity(),
        optimizer=AdamConfig(lr=1e-5, eps=1e-7),
        schedule=CosineSchedule(warmup_steps=200, final_factor=0.1),
        engine=DeepSpeedEngineConfig(zero=ZeroConfig(stage=1), precision="bf16", clip_norm=1.0),
        launch=RayLaunch(num_workers=1, use_gpu=True),
        loop=LoopConfig(steps=10_000, global_batch=128, micro_batch=16, checkpoint_every=1000, evaluate_every=1000),
    )
