"""A model that leaves its machine keeps what it is, and takes no path along."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.publishing.folder import DESCRIPTION, TrainedModel, read_bundle, write_portable
from pipelines.publishing.inference import InferenceModel
from pipelines.publishing.model_card import model_card
from pipelines.publishing.model_origin import ModelOrigin
from pipelines.publishing.training_stores import StoreReference
from preprocessing.store.episode_store import EpisodeStore
from tests.support.untrained import write_untrained


@pytest.fixture(scope="module")
def trained(store: str, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return read_bundle(write_untrained(store, tmp_path_factory.mktemp("untrained") / "bundle"))


def portable(trained: TrainedModel, origin: ModelOrigin, folder: Path) -> TrainedModel:
    folder.mkdir()
    write_portable(replace(trained, origin=origin), folder, source="test")
    return read_bundle(folder)


@pytest.mark.parametrize(("document", "tokens"), [({"plans": "0a1b"}, 64), ({"plans": ""}, 0), ({}, 0)])
def test_a_model_that_says_plans_says_them_wherever_it_is_loaded(
    document: dict[str, object], tokens: int, trained: TrainedModel, tmp_path: Path
) -> None:
    origin = ModelOrigin.from_json({**trained.origin.to_json(), **document, "position": {"sample": 3}})
    loaded = portable(trained, origin, tmp_path / "pushed")
    assert InferenceModel(loaded, plan_tokens=64).plan_tokens == tokens
    assert "position" not in loaded.origin.document


def test_a_store_outside_the_usual_folders_leaves_no_path(trained: TrainedModel, store: str, tmp_path: Path) -> None:
    place = tmp_path / "alice" / "s"
    shutil.copytree(store, place)
    written = StoreReference.of(EpisodeStore.open(str(place)), str(tmp_path / "run"))
    assert written.dataset == "metaworld_sample/1.0.0/val"
    older = replace(written, dataset="/".join(place.parts[-3:]))  # as it was recorded before
    origin = ModelOrigin(stores=(written, older))
    loaded = portable(trained, origin, tmp_path / "pushed")
    assert [each.name for each in loaded.origin.stores] == ["metaworld_sample/1.0.0/val", "s"]
    card = model_card(replace(trained, origin=origin), [], name="m")
    assert "### s\n" in card
    for text in ((tmp_path / "pushed" / DESCRIPTION).read_text(), card):
        assert "alice" not in text and tmp_path.name not in text
