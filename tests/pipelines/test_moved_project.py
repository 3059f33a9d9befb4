"""A project moves, or a part of it goes to another machine: what was trained there is still registered and loaded."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.publishing.registered import load_registered
from pipelines.publishing.training_stores import StoreReference
from pipelines.registry import show
from pipelines.tracking.mlflow_run import connect, tracking_uri
from preprocessing.store.episode_store import EpisodeStore

TRAIN = ["train", "rt1_tiny", "--data", "stores/metaworld_sample/1.0.0/val", "--output", "run", "--loop.steps"]


@pytest.fixture(scope="module")
def project(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a run, a bundle and a registered model, moved since it was made."""
    made, moved = tmp_path_factory.mktemp("made") / "job%2Fmain", tmp_path_factory.mktemp("moved") / "project"
    shutil.copytree(store, made / "stores/metaworld_sample/1.0.0/val")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main([*TRAIN, "1"]) == 0
        assert main(["export", "run", "bundle"]) == 0
        assert main(["register", "run", "--name", "arm", "--alias", "champion"]) == 0
    assert os.listdir(made.parent) == [made.name]
    shutil.move(made, moved)
    shutil.copytree(moved / "run", moved / "run as made")
    return moved


@pytest.fixture(autouse=True)
def away(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another machine, as it were: an empty folder with a registry of its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def store_tag(name: str) -> StoreReference:
    (version,) = show(connect(tracking_uri()).MlflowClient(), name).versions
    return version.stores[0]


def test_a_moved_project_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    opened = EpisodeStore.open("stores/metaworld_sample/1.0.0/val")
    frame = opened.read_rows(0, 0, ["image"])["image"].to_pylist()[0]
    (action,) = load_registered("models:/arm@champion")([frame], [opened.instruction_texts[0]])
    assert "terminate_episode" in action
    assert main(["register", "run", "--name", "again"]) == 0
    assert store_tag("again").path == opened.root
    assert main([*TRAIN, "2", "--resume"]) == 0
    metadata = json.loads(max(Path("run/checkpoints").glob("step-*/manifest.json")).read_text())["metadata"]
    assert metadata["stores"] == [opened.root]


def test_a_bundle_is_registered_where_its_store_is_not(
    project: Path, away: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(project / "bundle", away / "bundle")
    recorded = json.loads((away / "bundle/policy.json").read_text())["metadata"]["training_stores"][0]
    assert main(["register", "bundle", "--name", "arm"]) == 0
    assert "is not there any more" in caplog.text
    assert store_tag("arm").lineage() == {key: value for key, value in recorded.items() if key != "relative"}


def test_a_checkpoint_alone_needs_its_store_named_anew(
    project: Path, away: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(project / "run as made", away / "run")
    assert main(["register", "run", "--name", "arm"]) == 2
    assert "name the place where it lies now with --data" in capsys.readouterr().err
    caplog.clear()
    assert main(["register", "run", "--name", "arm", "--data", str(project / "stores")]) == 0
    assert "is not there" not in caplog.text
    assert store_tag("arm").path == str(project / "stores/metaworld_sample/1.0.0/val")


def test_a_store_that_is_no_training_store_is_not_taken_for_one(
    project: Path, away: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project / "run as made", away / "run")
    other = shutil.copytree(project / "stores", away / "other") / "metaworld_sample/1.0.0/val/manifest.json"
    other.write_text(other.read_text() + " ")
    assert main(["register", "run", "--name", "arm", "--data", str(away / "other")]) == 2
    assert "holds no training store that has moved" in capsys.readouterr().err
