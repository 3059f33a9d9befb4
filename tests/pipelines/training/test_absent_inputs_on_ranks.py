"""A rank whose batch lacks a camera or the state trains with one that has both: nobody waits for ever, and the losses
are those of one process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cluster.context import LocalContext, WorkerContext
from cluster.engine import DeepSpeedEngineConfig, TorchEngineConfig
from cluster.zero import ZeroConfig
from pipelines.catalogue import load_recipe
from pipelines.config.experiment import Experiment
from pipelines.training.data import open_reader, resolved, training_contract
from preprocessing.store.episode_store import EpisodeStore
from rt_models.spec import StateInput
from tests.support import two_cameras
from tests.support.ranks import run_ranks

MODELS: dict[str, dict[str, Any]] = {"rt1_tiny": {}, "rt1_tiny, separate": {"tokenizers": "separate"}, "rt2_tiny": {}}
ENGINES: dict[str, tuple[Any, ...]] = {
    "rt1_tiny": (TorchEngineConfig(), DeepSpeedEngineConfig(zero=ZeroConfig(stage=1))),
    "rt1_tiny, separate": (DeepSpeedEngineConfig(zero=ZeroConfig(stage=2)),),
    "rt2_tiny": (DeepSpeedEngineConfig(zero=ZeroConfig(stage=2)),),
}
UPDATES, ROWS = 3, 4  # ROWS of either robot in an update


def experiment(name: str) -> Experiment:
    recipe = load_recipe(name.partition(",")[0])
    changes = {**MODELS[name], "cameras": ("image", "wrist"), "state": StateInput(noise=0.1, dropout=0.2)}
    mix = None if recipe.co_fine_tuning is None else replace(recipe.co_fine_tuning, robot_share=1.0)
    return replace(recipe, model=replace(recipe.model, **changes), co_fine_tuning=mix)  # type: ignore[arg-type]


def losses(name: str, config: Any, context: WorkerContext, roots: list[str]) -> list[float]:
    """The loss of each update: rank 0 sees the robot with two cameras and a state, rank 1 the one without, and a single
    process both in one batch."""
    stores = [EpisodeStore.open(root) for root in roots]
    run = resolved(experiment(name), stores)
    reader = open_reader(run, stores, training_contract(run, stores), is_training=True)
    engine = config.build(context, micro_batch=2 * ROWS // context.world_size, accumulation=1)
    torch.manual_seed(context.rank)  # every rank draws other weights: rank 0's count
    engine.build(run.model.build, lambda model: torch.optim.SGD(model.parameters(), lr=0.0))
    whole = 2 + np.arange(ROWS)  # no padding, for which the learned tokens stand too
    found, both = [], [whole, reader.store_rows[0] + np.arange(ROWS)]
    rows = np.concatenate(both) if context.world_size == 1 else both[context.rank]
    for _ in range(UPDATES):
        engine.set_learning_rate(0.1)
        loss = engine.forward(reader.read(rows, rows))
        engine.backward(loss)
        assert engine.step() is not None
        found.append(float(np.mean(context.gather(loss.item()))))
    engine.close()
    return found


def all_losses(context: WorkerContext, roots: list[str]) -> dict[str, list[list[float]]]:
    return {name: [losses(name, each, context, roots) for each in engines] for name, engines in ENGINES.items()}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("stores")
    bare = two_cameras.store(folder / "bare", name="bare", hand=None, state=False, shards=((5, 6),))
    return [two_cameras.store(folder / "whole").root, bare.root]


@pytest.fixture(scope="module")
def of_two_ranks(roots: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[float]]]:
    first, second = run_ranks(all_losses, 2, tmp_path_factory.mktemp("results"), roots)
    assert first == second
    return first


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_of_which_one_lacks_inputs_train_as_one_process(
    name: str, roots: list[str], of_two_ranks: dict[str, list[list[float]]]
) -> None:
    alone = losses(name, TorchEngineConfig(), LocalContext("cpu"), roots)
    assert alone[0] > alone[-1]
    for found in of_two_ranks[name]:
        np.testing.assert_allclose(found, alone, rtol=1e-4)
