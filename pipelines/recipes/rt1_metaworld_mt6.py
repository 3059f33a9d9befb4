"""A small RT-1 that acts: six Meta-World tasks, 150 demonstrations each, half an hour on two CPU cores.

Faucet-open and faucet-close share their scene and their start: only the instruction tells them apart. How far the
policy gets is measured by `benchmarks/closed_loop.py`.
"""

from __future__ import annotations

from dataclasses import replace

from pipelines.config.experiment import Experiment
from pipelines.recipes import rt1_metaworld


def recipe() -> Experiment:
    """The experiment of this file's name."""
    base = rt1_metaworld.recipe()
    loop = replace(base.loop, steps=2500, checkpoint_every=500, log_every=25, evaluate_every=500)
    return replace(base, name="rt1_metaworld_mt6", loop=loop)
