"""The full RT-1 on all fifty Meta-World tasks, for one GPU or more; not trained yet.

Some goals are free points in space (reach, push, pick-place and their variants): nothing in a picture tells where to
go, so no policy reaches all of them.
"""

from __future__ import annotations

from dataclasses import replace

from pipelines.config.experiment import Experiment
from pipelines.recipes import rt1_metaworld_mt10


def recipe() -> Experiment:
    """The experiment of this file's name."""
    base = rt1_metaworld_mt10.recipe()
    loop = replace(base.loop, steps=20_000, global_batch=256, checkpoint_every=2000, evaluate_every=2000)
    return replace(base, name="rt1_metaworld_mt50", loop=loop)
