"""RT-1 as released, on its own data: batch 1024, Adam at a constant 1e-4 (the released training notebook)."""

from __future__ import annotations

from cluster.engine import DeepSpeedEngineConfig
from cluster.launch import RayLaunch
from cluster.zero import ZeroConfig
from pipelines.config.experiment import Experiment, LoopConfig
from pipelines.config.optimizer import AdamConfig
from rt_models.rt1 import RT1Config
from rt_models.spec import Identity


def recipe() -> Experiment:
    """The experiment of this file's name."""
    return Experiment(
        name="rt1_fractal",
        model=RT1Config.rt1(),
        scaling=Identity(),
        optimizer=AdamConfig(lr=1e-4, eps=1e-7),
        engine=DeepSpeedEngineConfig(zero=ZeroConfig(stage=1), precision="bf16", clip_norm=1.0),
        launch=RayLaunch(num_workers=8, use_gpu=True),
        loop=LoopConfig(steps=300_000, global_batch=1024, micro_batch=32, checkpoint_every=2000, log_every=50),
    )
