"""A run refers to its stores so that they are found again: where they were, where the project moved, or named anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.publishing.model_origin import ModelOrigin
from pipelines.publishing.training_stores import (
    StoreReference,
    named_anew,
    open_training_store,
    references_json,
    references_of,
)
from preprocessing.store.episode_store import EpisodeStore


@pytest.fixture
def project(store: str, tmp_path: Path) -> Path:
    """A project folder with a store and a run."""
    folder = tmp_path / "project"
    shutil.copytree(store, folder / "stores/metaworld_sample/1.0.0/val")
    (folder / "runs/one").mkdir(parents=True)
    return folder


def metadata(project: Path) -> dict[str, Any]:
    """As a checkpoint keeps them, through JSON."""
    opened = EpisodeStore.open(str(project / "stores/metaworld_sample/1.0.0/val"))
    references = [StoreReference.of(opened, str(project / "runs/one"))]
    return json.loads(json.dumps({"git_revision": "x", **references_json(references)}))


def test_a_store_is_found_again_where_the_project_has_moved(project: Path, tmp_path: Path) -> None:
    written = ModelOrigin.from_json(metadata(project))
    assert written.found_from(str(project / "runs/one")) == written
    moved = tmp_path / "elsewhere/renamed"
    shutil.move(project, moved)
    origin = written.found_from(str(moved / "runs/one"))
    assert origin.to_json()["stores"] == [str(moved / "stores/metaworld_sample/1.0.0/val")]
    assert open_training_store(origin.stores[0]) is not None
    bundle = ModelOrigin.from_json(origin.seen_from(str(moved / "bundle")).to_json())
    shutil.move(moved, tmp_path / "again")
    again = bundle.found_from(str(tmp_path / "again/bundle"))
    assert again.to_json()["stores"] == [str(tmp_path / "again/stores/metaworld_sample/1.0.0/val")]


def test_a_store_of_the_same_path_and_other_content_is_not_it(project: Path, caplog: Any) -> None:
    (reference,) = references_of(metadata(project))
    manifest = project / "stores/metaworld_sample/1.0.0/val/manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    assert open_training_store(reference) is None
    assert "is not the same any more" in caplog.text


def test_a_lost_store_is_named_anew_by_its_fingerprint(project: Path, tmp_path: Path, caplog: Any) -> None:
    (reference,) = references_of(metadata(project))
    assert named_anew([reference], [str(project / "stores")]) == {}  # it is where it was: nothing is lost
    shutil.move(project / "stores", tmp_path / "archive")
    assert open_training_store(reference) is None and "--data names the place" in caplog.text
    anew = named_anew([reference], [str(tmp_path / "nowhere"), str(tmp_path / "archive")])
    assert anew == {reference.path: str(tmp_path / "archive")}
    opened = open_training_store(reference, anew[reference.path])
    assert opened is not None and opened.root == str(tmp_path / "archive/metaworld_sample/1.0.0/val")


def test_older_metadata_name_paths_alone(project: Path) -> None:
    store = str(project / "stores/metaworld_sample/1.0.0/val")
    older = {"stores": [store], "git_revision": "x"}
    origin = ModelOrigin.from_json(older)
    assert origin.found_from("/somewhere").to_json() == older == origin.seen_from("/somewhere").to_json()
    (reference,) = references_of(older)
    assert reference.dataset == "metaworld_sample/1.0.0/val"
    assert open_training_store(reference) is not None


def test_a_reference_from_or_to_an_object_store_has_no_way(project: Path) -> None:
    opened = EpisodeStore.open(str(project / "stores/metaworld_sample/1.0.0/val"))
    assert StoreReference.of(opened, "s3://bucket/run").relative == ""
