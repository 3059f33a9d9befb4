"""Does imitation from V-D4RL's layout act? Demonstrations of a known controller, store, training, and return.

    python benchmarks/dmc_closed_loop.py [--folder runs/point_mass] [--demonstrations 100] [--episodes 10] [--steps N]

A controller with a known formula solves point_mass-easy; its episodes are written in V-D4RL's layout of 64 pixels. A
small RT-1 with 4 frames and 512 bins learns from them. Everything goes through the commands that a user types; a stage
that has left its result is not run again. Exits with 1 unless the policy's return is above copying, the mean action,
random actions and blind replay by the paired test. With --wrong-row a second training pairs each frame with the action
that led to it, as the rows of the files stand; the first must be above it, too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from closed_loop import rtp

TASK = "point_mass-easy"
LOWER = ("random", "mean action", "copy", "replay")
RECIPE = ("rt1_metaworld", "--model.num-steps", 4, "--model.bins", 512, "--loop.segment-windows", 4)
ALONE = ("--launch", "InProcess", "--engine", "TorchEngineConfig", "--loop.micro-batch", 32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/point_mass"))
    parser.add_argument("--demonstrations", type=int, default=100, help="episodes (default: 100)")
    parser.add_argument("--decisions", type=int, default=80, help="of each episode (default: 80)")
    parser.add_argument("--noise", type=float, default=0.3, help="on the controller's action (default: 0.3)")
    parser.add_argument("--episodes", type=int, default=10, help="evaluated, of 500 decisions each (default: 10)")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps (default: 600)")
    parser.add_argument("--workers", type=int, default=2, help="simulators (default: 2)")
    parser.add_argument("--wrong-row", action="store_true", help="also train on the row's own action")
    given, extra = parser.parse_known_args()
    began = time.monotonic()
    files = demonstrations(given)
    store = stored(files, given.folder / "stores")
    train(given, store, given.folder / "run", extra)
    against = []
    if given.wrong_row:
        wrong = stored(unshifted(files, given.folder / "unshifted"), given.folder / "stores-unshifted")
        train(given, wrong, given.folder / "run-unshifted", extra)
        against = ["--against", given.folder / "run-unshifted"]
    scores = evaluate(given, store, against)
    claims = checked(scores, [*LOWER, *(["against"] if against else [])])
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    returns = {name: own["returns"] for name, own in scores["actors"].items()}
    minutes = (time.monotonic() - began) / 60
    print(json.dumps({"minutes": round(minutes, 1), "claims": claims, "returns": returns}))
    return int(not all(claims.values()))


def demonstrations(given: argparse.Namespace) -> Path:
    """The folder of .npz episodes."""
    folder = given.folder / "demonstrations"
    words = ["--episodes", given.demonstrations, "--decisions", given.decisions, "--noise", given.noise]
    if not folder.exists():
        rtp("simulate", folder, "--tasks", f"dmc:{TASK}", "--image-size", "64x64", *words, "--workers", given.workers)
    return folder / "point_mass_easy/expert/64px"


def unshifted(files: Path, folder: Path) -> Path:
    """The same episodes with each action one row earlier: the reader then pairs frame t with the action before it."""
    out = folder / "point_mass_easy/expert/64px"
    if not out.exists():
        out.mkdir(parents=True)
        for file in sorted(files.iterdir()):
            arrays = dict(np.load(file))
            arrays["action"] = np.roll(arrays["action"], 1, axis=0)
            np.savez_compressed(out / file.name, **arrays)
    return out


def stored(files: Path, stores: Path) -> Path:
    rtp("preprocess", files, stores)
    return stores / "vd4rl_point_mass_easy_expert/64px/train"


def train(given: argparse.Namespace, store: Path, run: Path, extra: list[str]) -> None:
    words = [*RECIPE[1:], *ALONE, "--loop.steps", given.steps, "--loop.checkpoint-every", max(given.steps // 4, 1)]
    rtp("train", RECIPE[0], *words, "--data", store, "--output", run, "--resume", *extra)


def evaluate(given: argparse.Namespace, store: Path, against: list[Any]) -> dict[str, Any]:
    """The report of `rtp evaluate --env`."""
    report, folder = given.folder / "closed_loop.json", given.folder
    words = ["--episodes", given.episodes, "--workers", given.workers, "--data", store, "--output", report, *against]
    words += ["--baselines", "random", "mean_action", "copy", "replay", "expert"]
    shown = ["--video", folder / "videos", "--html", folder / "return.html"]
    rtp("evaluate", folder / "run", "--env", f"dmc:{TASK}", *words, *shown)
    return json.loads(report.read_text())["closed_loop"]


def checked(scores: dict[str, Any], lower: list[str]) -> dict[str, bool]:
    """Each claim, and whether it holds."""
    claims = {}
    for name in lower:
        compared = scores["compared"][name]
        difference = compared["difference"]
        claim = f"above {name} by {difference['mean']:.0f} [{difference['low']:.0f}, {difference['high']:.0f}]"
        claims[claim] = difference["low"] > 0 and compared["p_value"] < 0.05
    return claims


if __name__ == "__main__":
    sys.exit(main())
