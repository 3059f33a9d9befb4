"""RT-1's whole architecture at a size that trains a step in milliseconds: for trying commands out, not for results."""

from __future__ import annotations

from pipelines.config.experiment import Experiment, InProcess, LoopConfig
from rt_models.rt1 import RT1Config
from rt_models.spec import Quantiles


def recipe() -> Experiment:
    """The experiment of this file's name."""
    return Experiment(
        name="rt1_tiny",
        model=RT1Config.tiny(),
        scaling=Quantiles(),
        launch=InProcess(),
        loop=LoopConfig(steps=20, global_batch=16, micro_batch=8, log_every=1, checkpoint_every=10),
    )
