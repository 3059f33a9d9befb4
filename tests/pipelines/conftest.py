"""A store made from the shipped episodes, and the real command line in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preprocessing.convert import ConvertConfig, convert

SAMPLE = Path(__file__).resolve().parents[2] / "examples/metaworld_sample/1.0.0"

Rtp = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sample's val split as a store."""
    config = ConvertConfig(split="val", encoder="hash", workers=0)
    return convert(str(SAMPLE), str(tmp_path_factory.mktemp("store")), config).store


def rtp_command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pipelines", *map(str, arguments)]


@pytest.fixture(scope="session")
def rtp(tmp_path_factory: pytest.TempPathFactory) -> Rtp:
    """Runs `rtp ... --json` to its end with exit code 0; the parsed last line. All calls share one MLflow database."""
    home = tmp_path_factory.mktemp("home")

    def run(*arguments: object) -> dict[str, Any]:
        done = subprocess.run(
            rtp_command(*arguments, "--json"), cwd=home, capture_output=True, text=True, env=environment(), check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def environment() -> dict[str, str]:
    """This process's environment, with the checkout importable and one thread for each of several processes."""
    repository = str(Path(__file__).resolve().parents[2])
    kept = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    return kept | {"PYTHONPATH": repository, "OMP_NUM_THREADS": "1"}
