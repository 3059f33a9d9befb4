"""Workers, a node and the driver of a real training killed, in a save and in an evaluation: nothing changes.

The long form, with twenty kills, is the program itself: benchmarks/chaos.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = REPOSITORY / "benchmarks/chaos.py"


@pytest.mark.slow
def test_a_training_that_is_killed_three_times_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--kills", "3", "--steps", "120"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    results = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))["results"]
    outcomes = results["outcomes"]
    assert {outcome["victim"] for outcome in outcomes} == {"worker", "raylet", "driver"}
    assert {outcome["moment"] for outcome in outcomes} == {"any", "save", "evaluation"}
    assert results["complaints"] == [] and len(results["recomputed"]) >= 3
