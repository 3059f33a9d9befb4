"""A checkpoint's metadata are written as they always were, and what older ones lack is filled in."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cluster.manifest import Manifest
from cluster.storage import Checkpoint
from pipelines.catalogue import load_recipe
from pipelines.config.serialization import to_plain
from pipelines.publishing.training_stores import StoreReference
from pipelines.training.checkpoint_metadata import CheckpointMetadata
from pipelines.training.initial_weights import require_same_run
from pipelines.training.loop_state import LoopState
from preprocessing.store.episode_store import EpisodeStore

KEYS = [
    *("experiment", "contract", "contract_id", "plans", "position", "loop_state", "world_size", "git_revision"),
    *("mlflow_run_id", "stores", "training_stores", "validation_loss", "cloned_from"),
]


def metadata_of(store: str, recipe: str = "rt1_tiny", **changes: Any) -> CheckpointMetadata:
    opened = EpisodeStore.open(store)
    known = CheckpointMetadata(
        experiment=to_plain(load_recipe(recipe)),
        contract=opened.contract,
        position={"sample": 32},
        loop_state=LoopState(best=0.5, best_step=2, skipped=1),
        stores=(StoreReference.of(opened, "/run"),),
        plans="",
        world_size=2,
        git_revision="abc",
        mlflow_run_id="0" * 32,
        best=0.5,
        cloned_from="/donor/checkpoints/step-00000002",
    )
    return replace(known, **changes)


def checkpoint_of(data: Any) -> Checkpoint:
    return Checkpoint(path="run/checkpoints/step-1", manifest=Manifest(step=1, metadata=data, files=()))


def test_it_is_read_as_it_was_written_under_the_keys_of_version_0_1(store: str) -> None:
    metadata = metadata_of(store)
    data = json.loads(json.dumps(metadata.to_json()))
    assert list(data) == KEYS and data["validation_loss"] == 0.5 and data["stores"] == [store]
    assert data["contract_id"] == metadata.contract.id
    assert CheckpointMetadata.of(checkpoint_of(data)) == metadata
    plain = metadata_of(store, best=None, cloned_from=None).to_json()
    assert list(plain) == KEYS[:-2]


def test_older_checkpoints_say_less(store: str) -> None:
    data = metadata_of(store).to_json()
    old = {key: data[key] for key in ("experiment", "contract", "position", "stores")}
    del old["experiment"]["loop"]["best_by"]
    found = CheckpointMetadata.of(checkpoint_of(old))
    assert (found.plans, found.best, found.cloned_from, found.mlflow_run_id) == (None, None, None, None)
    assert found.loop_state == LoopState() and found.git_revision == "unknown"
    assert [(each.path, each.source) for each in found.stores] == [(store, "")]
    assert "plans" not in found.to_json()


def test_a_config_class_that_was_renamed_is_the_same_model(store: str) -> None:
    recipe = load_recipe("rt2_tiny")
    data = metadata_of(store, "rt2_tiny", plans=None).to_json()
    assert data["experiment"]["model"]["tokenizer"]["type"] == "BytePairConfig"
    data["experiment"]["model"]["tokenizer"]["type"] = "MergedBytes"
    require_same_run(checkpoint_of(data), EpisodeStore.open(store).contract, recipe)


@pytest.mark.parametrize("missing", ["experiment", "contract", "position"])
def test_what_is_no_checkpoint_of_a_training_is_refused_by_name(missing: str, store: str) -> None:
    data = {key: value for key, value in metadata_of(store).to_json().items() if key != missing}
    with pytest.raises(ValueError, match=r"run/checkpoints/step-1 is no checkpoint of rtp train"):
        CheckpointMetadata.of(checkpoint_of(data))
