"""The scripts that measure a GPU run at toy size on a CPU, so that they work on the day when a GPU is at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.command_line import REPOSITORY, environment


def printed(script: str, *arguments: str) -> list[dict[str, Any]]:
    """The JSON lines that the script prints."""
    command = [sys.executable, f"benchmarks/{script}", "--toy", *arguments]
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=560)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]


def run_stages(*stages: str) -> list[dict[str, Any]]:
    lines = printed("gpu.py", "--only", *stages)
    assert [line["stage"] for line in lines if line.get("ended") == 0] == list(stages)
    return lines


def test_training_and_control() -> None:
    lines = run_stages("train", "control")
    cases = {(line["case"], line["kernels"]) for line in lines if "windows_per_s" in line}
    assert cases == {(case, kernels) for case in ("segments", "plain") for kernels in ("ours", "graph", "torch")}
    assert {(line["robots"], line["side"]) for line in lines if "median_ms" in line} == {(1, "eager"), (2, "eager")}


@pytest.mark.slow
def test_the_other_stages() -> None:
    run_stages("loop", "parity", "shapes", "profile")


def test_a_step_is_counted() -> None:
    lines = printed("step_counts.py")
    sides = {side: [line for line in lines if line["side"] == side] for side in ("torch", "ours")}
    assert [line["tflop"] for line in sides["torch"]] == [line["tflop"] for line in sides["ours"]]
    for before, after in zip(sides["torch"], sides["ours"], strict=True):
        assert 0 < after["launches"] < before["launches"] and 0 < after["gigabytes"] < before["gigabytes"]
