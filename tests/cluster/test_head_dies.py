"""A cluster that loses its head in mid-training: the driver ends, and one command on a new cluster goes on exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_one_command_goes_on_where_the_head_died(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks/head_dies.py"), "--steps", "60"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    results = json.loads(done.stdout.splitlines()[-1])["results"]
    assert results["complaints"] == [] and results["driver"]["exit_code"] != 0 and results["reached"] >= 30
