"""RT-1 on V-D4RL's 84-pixel frames: an EfficientNet-B0, 4 frames, 512 bins; a GPU, evaluated by return in dm_control.

Batch, learning rate and steps are those of V-D4RL's behavioural cloning (arXiv 2206.04779): Adam 3e-4, batch 256,
100,000 steps. B0 is that of arXiv 1905.11946, table 1, at its own 224 pixels.
"""

from __future__ import annotations

from cluster.engine import DeepSpeedEngineConfig
from cluster.launch import RayLaunch
from cluster.zero import ZeroConfig
from pipelines.config.experiment import Experiment, LoopConfig
from pipelines.config.optimizer import AdamConfig
from rt_models.blocks.transformer import TransformerConfig
from rt_models.rt1 import RT1Config
from rt_models.spec import Bounds
from rt_models.vision.efficientnet import EfficientNetConfig, Stage
from rt_models.vision.image_inputs import InputConfig

B0_STAGES = (
    Stage(expansion=1, kernel=3, stride=1, channels=16, num_blocks=1),
    Stage(expansion=6, kernel=3, stride=2, channels=24, num_blocks=2),
    Stage(expansion=6, kernel=5, stride=2, channels=40, num_blocks=2),
    Stage(expansion=6, kernel=3, stride=2, channels=80, num_blocks=3),
    Stage(expansion=6, kernel=5, stride=1, channels=112, num_blocks=3),
    Stage(expansion=6, kernel=5, stride=2, channels=192, num_blocks=4),
    Stage(expansion=6, kernel=3, stride=1, channels=320, num_blocks=1),
)


def recipe() -> Experiment:
    """The experiment of this file's name."""
    return Experiment(
        name="rt1_vd4rl",
        model=RT1Config(
            backbone=EfficientNetConfig(stem_channels=32, stages=B0_STAGES, head_channels=1280),
            transformer=TransformerConfig(num_layers=4, num_heads=4, feed_forward="swiglu", mask="jax"),
            input=InputConfig(image_size=224),
            num_steps=4,
            bins=512,
        ),
        scaling=Bounds(),
        optimizer=AdamConfig(lr=3e-4),
        engine=DeepSpeedEngineConfig(zero=ZeroConfig(stage=1), precision="bf16", clip_norm=1.0),
        launch=RayLaunch(num_workers=1, use_gpu=True),
        loop=LoopConfig(steps=100_000, global_batch=256, micro_batch=64, checkpoint_every=10_000, log_every=50),
    )
