"""`--help` of commands that name a model is shown without importing torch or MLflow."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.command_line import REPOSITORY, environment

SHOWN = """
import atexit, sys
atexit.register(lambda: print("imported:", *({"torch", "mlflow", "ray", "deepspeed"} & set(sys.modules))))
from pipelines.cli import main
main([*sys.argv[1:], "--help"])
"""


@pytest.mark.parametrize("command", ["evaluate", "export", "import-weights", "register", "replay", "serve"])
def test_help_needs_no_torch(command: str) -> None:
    words = [sys.executable, "-c", SHOWN, command]
    done = subprocess.run(words, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: rtp {command}" in done.stdout and done.stdout.splitlines()[-1] == "imported:"
