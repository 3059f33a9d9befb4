"""A bundle of an untrained model of the shipped sample."""

from __future__ import annotations

from pathlib import Path

import torch

from pipelines.catalogue import load_recipe
from pipelines.publishing.folder import TrainedModel, write_bundle
from pipelines.publishing.instructions import Instructions
from pipelines.publishing.model_origin import ModelOrigin
from pipelines.training.data import training_contract
from preprocessing.store.episode_store import EpisodeStore


def write_untrained(store: str, folder: Path, *, seed: int = 0) -> Path:
    """Into the new `folder`: rt1_tiny with weights drawn from `seed`, for the episodes of `store`."""
    recipe, opened = load_recipe("rt1_tiny"), EpisodeStore.open(store)
    torch.manual_seed(seed)
    folder.mkdir()
    trained = TrainedModel(
        model=recipe.model.build().eval(),
        contract=training_contract(recipe, [opened]),
        step=0,
        source="here",
        origin=ModelOrigin.from_json({"stores": [store], "git_revision": "none"}),
        instructions=Instructions.of_stores("hash-512", [opened]),
    )
    write_bundle(trained, folder)
    return folder
