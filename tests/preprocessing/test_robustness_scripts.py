"""Short forms of the scripts in benchmarks/ that damage files and kill conversions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def result(script: str, *flags: object) -> dict[str, Any]:
    """The last line of a script that must end well."""
    command = [sys.executable, str(BENCHMARKS / script), *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parent)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_damaged_files_are_accounted_for() -> None:
    assert result("preprocess_mutations.py", "--count", 35, "--seed", 1)["count"] == 35


def test_damaged_pictures_are_read_by_all_or_by_none() -> None:
    assert result("picture_mutations.py", "--count", 300, "--seed", 1)["count"] == 300


def test_damaged_web_data_are_accounted_for_and_read() -> None:
    """Each layout damaged in each way, and what was accepted read for an epoch."""
    found = result("web_mutations.py", "--count", 48, "--seed", 1)
    assert found["count"] == 48 and found["read"] > 100


@pytest.mark.slow
def test_killed_conversions_end_with_the_same_store() -> None:
    found = result("preprocess_kills.py", "--kills", 3, "--shards", 12, "--seed", 2)
    assert sum(found["killed"].values()) == 3 and found["compared"] >= 1
