"""Meta-World's recipes for a GPU, trained two steps at toy size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.catalogue import load_recipe
from pipelines.config.experiment import InProcess
from pipelines.train import run_training
from pipelines.training.job import TrainJob
from rt_models.rt1 import RT1Config


@pytest.mark.parametrize("name", ["rt1_metaworld_mt10", "rt1_metaworld_mt50"])
def test_the_recipe_trains_two_steps_with_a_tiny_model(name: str, store: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    recipe.require_sizes()
    assert recipe.model == RT1Config.rt1() and recipe.name == name
    loop = replace(recipe.loop, steps=2, global_batch=8, micro_batch=4, evaluate_every=0)
    tiny = replace(recipe, model=RT1Config.tiny(), launch=InProcess(), loop=loop)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    result = run_training(TrainJob(experiment=tiny, stores=(store,), output=str(tmp_path / "run"), tracking_uri=uri))
    assert result.steps == 2 and result.checkpoint is not None
