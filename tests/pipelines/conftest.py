"""A store made from the shipped episodes, and the real command line run to its end."""

from __future__ import annotations

import io
import json
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from preprocessing.convert import ConvertConfig, convert
from tests.support.command_line import SAMPLE, Rtp, environment, rtp_command


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sample's val split as a store."""
    config = ConvertConfig(split="val", encoder="hash", workers=0)
    return convert(str(SAMPLE), str(tmp_path_factory.mktemp("store")), config).store


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def drawing() -> None:
    """The test draws a simulator's frames."""
    from preprocessing.simulation.gl_backend import gl_backend

    if gl_backend() is None:
        pytest.skip("no OpenGL draws without a screen here")


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new one of MLflow, whose 60 migrations of an empty file take 2 seconds each time."""
    from mlflow.store.db import utils

    template = tmp_path_factory.mktemp("mlflow") / "template.db"
    made = utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{template}")
    utils._initialize_tables(made)
    made.dispose()
    return template


@pytest.fixture(scope="session", autouse=True)
def quick_databases(mlflow_database: Path) -> Iterator[None]:
    """The databases that MLflow makes in this process are copies of one."""
    from mlflow.store.db import utils
    from mlflow.store.model_registry import sqlalchemy_store as registry

    initialize = utils._initialize_tables

    def copied(engine: Any) -> None:
        if engine.dialect.name != "sqlite":
            initialize(engine)
            return
        with closing(sqlite3.connect(mlflow_database)) as whole, closing(sqlite3.connect(engine.url.database)) as new:
            whole.backup(new)

    with pytest.MonkeyPatch.context() as patch:
        for module in (utils, registry):
            patch.setattr(module, "_initialize_tables", copied)
        yield


@pytest.fixture(scope="session")
def rtp(tmp_path_factory: pytest.TempPathFactory) -> Rtp:
    """Runs `rtp ... --json` in a process of its own to its end with exit code 0; the parsed last line. All calls share
    one MLflow database."""
    home = tmp_path_factory.mktemp("home")

    def run(*arguments: object) -> dict[str, Any]:
        done = subprocess.run(
            rtp_command(*arguments, "--json"), cwd=home, capture_output=True, text=True, env=environment(), check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def rtp_here(tmp_path_factory: pytest.TempPathFactory) -> Rtp:
    """The same in this process, which has imported what it needs: some seconds less each time."""
    home = tmp_path_factory.mktemp("home")

    def run(*arguments: object) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
            patch.chdir(home)
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            code = main([*map(str, arguments), "--json"])
        assert code == 0, printed.getvalue()
        return json.loads(printed.getvalue().splitlines()[-1])

    return run
