"""An MLP on pooled pixels, two steps: pipelines/recipes/pixel_mlp.py in the checkout that the test makes."""

from __future__ import annotations

from pipelines.config.experiment import Experiment, LoopConfig
from rt_models.pixel_mlp import PixelMLPConfig
from rt_models.spec import Quantiles


def recipe() -> Experiment:
    loop = LoopConfig(steps=2, global_batch=8, micro_batch=4, log_every=1)
    return Experiment(name="pixel_mlp", model=PixelMLPConfig(), scaling=Quantiles(), loop=loop)
