"""An optimizer step of `rtp train` on a CPU: this checkout against another one, the same recipe, store and samples.

    python benchmarks/loop_step.py OTHER STORE [--recipe rt1_tiny] [--rounds 5] [--steps 60]

A round is one training of each side, in turn, in a process of its own; a side's seconds are the median over the lines
of its metrics, without the first ones. Losses are compared: what is not the same training is not worth timing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import positive, print_json, ratio

HERE = Path(__file__).resolve().parents[1]
WARM_UP = 3  # lines


def main() -> None:
    arguments = _arguments()
    sides = {"this": HERE, "other": Path(arguments.other).resolve()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {}
    for number in range(arguments.rounds):
        order = list(sides) if number % 2 else list(sides)[::-1]
        for name in order:
            lines = _trained(sides[name], arguments)
            seconds[name].append(statistics.median(1 / line["samples_per_s"] for line in lines[WARM_UP:]))
            losses[name] = [line["loss"] for line in lines]
        print(f"round {number}: {seconds['this'][-1] / seconds['other'][-1]:.3f} of the other", flush=True)
    assert losses["this"] == losses["other"], "the sides train differently"
    rounds, medians = ratio(seconds["this"], seconds["other"]), {k: statistics.median(v) for k, v in seconds.items()}
    print(f"ratio of a round {rounds}; ratio of the medians {medians['this'] / medians['other']:.3f}")
    print_json("loop_step", arguments, {"rounds": rounds.to_json(), "seconds_per_sample": medians})


def _trained(checkout: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The lines of metrics that hold a loss."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--loop.steps", str(arguments.steps), "--loop.log-every", "5", "--loop.checkpoint-every", "100000"]
        # A copy, since a checkout leaves an audit there that another one may not read.
        store = shutil.copytree(arguments.store, f"{folder}/store", ignore=shutil.ignore_patterns("audit.json"))
        flags += ["--launch", "InProcess", "--engine", "TorchEngineConfig", "--data", str(store)]
        command = [sys.executable, "-m", "pipelines", "train", arguments.recipe, *flags, "--output", f"{folder}/run"]
        environment = {**os.environ, "PYTHONPATH": str(checkout), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/m.db"}
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        lines = map(json.loads, Path(folder, "run/metrics.jsonl").read_text().splitlines())
        return [line for line in lines if "loss" in line]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", help="folder of the other checkout")
    parser.add_argument("store", help="episode store to train on")
    parser.add_argument("--recipe", default="rt1_tiny")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--steps", type=positive, default=60)
    return parser.parse_args()


if __name__ == "__main__":
    main()
