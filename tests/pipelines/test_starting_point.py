from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from cluster.manifest import Manifest
from cluster.storage import Checkpoint
from pipelines.catalogue import load_recipe
from pipelines.serialization import to_plain
from pipelines.starting_point import freeze, model_factory, require_same_run
from preprocessing.episode_store import EpisodeStore
from rt_models.rt1 import RT1Config


def test_parts_are_frozen_by_the_beginning_of_their_names() -> None:
    model = model_factory(replace(load_recipe("rt1_tiny"), freeze=("tokenizer.backbone", "transformer.output")), None)()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        n for n, _ in model.named_parameters() if n.startswith(("tokenizer.backbone", "transformer.output"))
    }
    assert frozen


@pytest.mark.parametrize(
    ("beginnings", "words"),
    [(["tokenizr"], "did you mean 'tokenizer'"), (["tokenizer", "transformer"], "leaves nothing to train")],
)
def test_freezing_nothing_or_all_is_refused(beginnings: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        freeze(RT1Config.tiny().build(), beginnings)


def test_no_name_freezes_no_part() -> None:
    model = nn.Linear(1, 1)
    freeze(model, [])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_resumed_run_may_change_what_does_not_change_the_run(store: str) -> None:
    experiment, contract = load_recipe("rt1_tiny"), EpisodeStore.open(store).contract
    metadata = {"contract": contract.to_json(), "experiment": to_plain(experiment)}
    found = Checkpoint(path="run/checkpoints/step-1", manifest=Manifest(step=1, metadata=metadata, files=()))
    free = replace(
        experiment,
        loop=replace(experiment.loop, steps=999, log_every=7, micro_batch=4, patience=3),
        optimizer=replace(experiment.optimizer, lr=1.0),
    )
    require_same_run(found, contract, free)
    for changed, words in (
        (replace(experiment, loop=replace(experiment.loop, seed=1)), "loop.seed was 0 and is now 1"),
        (replace(experiment, freeze=("tokenizer.",)), r"freeze was \[\] and is now \['tokenizer.'\]"),
        (replace(experiment, model=replace(experiment.model, num_steps=2)), "model.num_steps was 3 and is now 2"),
    ):
        with pytest.raises(ValueError, match=words):
            require_same_run(found, contract, changed)
    with pytest.raises(ValueError, match="was trained under contract"):
        require_same_run(found, replace(contract, encoder="another"), experiment)
