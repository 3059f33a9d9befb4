"""MLflow's own database on this machine: relative addresses, folders with any name, folders that move."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.tracking.local_database import address_of, artifact_location, database_of, follow_move, made_absolute
from pipelines.tracking.mlflow_run import TrainingRun, connect, tracking_uri


@given(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(lambda n: n != ".")
)
def test_an_address_names_the_file_that_it_was_made_of(name: str) -> None:
    database = Path("/home") / name / "mlflow.db"
    assert database_of(address_of(database)) == database
    assert database_of(made_absolute(address_of(database))) == database


def test_a_relative_address_is_that_of_the_folder_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "job%2Fmain"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for given_address in ("sqlite:///mlflow.db", "sqlite:///./mlflow.db", "sqlite+pysqlite:///mlflow.db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given_address)
        assert database_of(tracking_uri()) == folder / "mlflow.db"
    for given_address in ("mlruns", "./mlruns", "file:mlruns"):
        assert made_absolute(given_address) == (folder / "mlruns").as_uri()
    for kept in ("https://host/x", "databricks", "sqlite://", "sqlite:////home/me/mlflow.db", "file:///home/mlruns"):
        assert made_absolute(kept) == kept


@pytest.mark.parametrize("address", ["sqlite://mlflow.db", "sqlite:mlflow.db"])
def test_an_address_that_names_no_file_is_refused_with_how_to_write_it(address: str) -> None:
    with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_URI=.* write sqlite:///mlflow.db"):
        made_absolute(address)


def recorded(folder: Path) -> dict[str, Any]:
    """A run with an artifact, and what was written."""
    run = TrainingRun(uri=address_of(folder / "mlflow.db"), experiment="e", name="r", params={}, run_id=None)
    run.json({"a": 1}, "a.json")
    run.finish()
    return {"run_id": run.run_id, "content": {"a": 1}}


def read_back(folder: Path, written: dict[str, Any]) -> None:
    mlflow = connect(address_of(folder / "mlflow.db"))
    place = mlflow.MlflowClient().get_run(written["run_id"]).info.artifact_uri
    assert place.startswith(artifact_location(folder / "mlflow.db") + "/")
    assert mlflow.artifacts.load_dict(f"{place}/a.json") == written["content"]


@pytest.mark.parametrize("name", ["job%2Fmain", "run?1#a größe"])
def test_runs_lie_in_their_folder_whatever_its_name_and_move_with_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name / "runs"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    written = recorded(folder)
    assert (folder / "mlflow.db").is_file() and os.listdir(tmp_path) == [name]
    read_back(folder, written)
    moved = tmp_path / "other name%20" / "runs"
    shutil.move(folder.parent, moved.parent)
    read_back(moved, written)
    copied = tmp_path / "copy" / "runs"
    shutil.copytree(moved.parent, copied.parent)
    read_back(copied, written)  # its own artifacts, not those it was copied from
    read_back(moved, written)


def test_artifacts_that_stayed_where_they_were_are_still_named(tmp_path: Path) -> None:
    """Only the database moved; or only a copy of the artifacts lies beside it, and no database where they were."""
    folder, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    written = recorded(folder)
    elsewhere.mkdir()
    shutil.move(folder / "mlflow.db", elsewhere / "mlflow.db")
    (elsewhere / "mlflow-artifacts").mkdir()
    follow_move(elsewhere / "mlflow.db")
    place = connect(address_of(elsewhere / "mlflow.db")).MlflowClient().get_run(written["run_id"]).info.artifact_uri
    assert place.startswith(artifact_location(folder / "mlflow.db"))


def test_a_file_that_is_no_database_is_left_to_mlflow(tmp_path: Path) -> None:
    (tmp_path / "mlflow-artifacts").mkdir()
    (tmp_path / "mlflow.db").write_text("this is no database, and much too long to be an empty one" * 20)
    follow_move(tmp_path / "mlflow.db")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE t (c)")
    follow_move(tmp_path / "other.db")
