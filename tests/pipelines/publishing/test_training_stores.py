"""A run refers to its stores so that they are found again: where they were, where the project moved, or named anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.publishing.training_stores import (
    REFERENCES,
    StoreReference,
    found_again,
    named_anew,
    open_training_store,
    references_of,
    referred_from,
    with_references,
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
    return json.loads(json.dumps(with_references({"git_revision": "x"}, references)))


def test_a_store_is_found_again_where_the_project_has_moved(project: Path, tmp_path: Path) -> None:
    written = metadata(project)
    assert found_again(written, str(project / "runs/one")) == written
    moved = tmp_path / "elsewhere/renamed"
    shutil.move(project, moved)
    found = found_again(written, str(moved / "runs/one"))
    assert found["stores"] == [str(moved / "stores/metaworld_sample/1.0.0/val")]
    assert open_training_store(references_of(found)[0]) is not None
    (moved / "runs/deeper").mkdir()
    bundle = referred_from(found, str(moved / "bundle"))
    shutil.move(moved, tmp_path / "again")
    again = found_again(bundle, str(tmp_path / "again/bundle"))
    assert again["stores"] == [str(tmp_path / "again/stores/metaworld_sample/1.0.0/val")]


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
    older = {"stores": [store]}
    assert found_again(older, "/somewhere") == older and REFERENCES not in referred_from(older, "/somewhere")
    (reference,) = references_of(older)
    assert reference.dataset == "metaworld_sample/1.0.0/val"
    assert open_training_store(reference) is not None


def test_a_reference_from_or_to_an_object_store_has_no_way(project: Path) -> None:
    opened = EpisodeStore.open(str(project / "stores/metaworld_sample/1.0.0/val"))
    assert StoreReference.of(opened, "s3://bucket/run").relative == ""
