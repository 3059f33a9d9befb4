"""Does what this project trains act? Demonstrations, store, training and closed loop on six Meta-World tasks.

    python benchmarks/closed_loop.py [--folder runs/mt6] [--demonstrations 150] [--episodes 20] [--steps N]

Everything goes through the commands that a user types; a stage that has left its result is not run again. Definitions
are those of docs/closed_loop.md. Exits with 1 unless the policy

- succeeds in at least 60 % of all episodes, and in 50 % of the last four tasks, which blind replay solves in 25 %
- succeeds in at least 50 % of the faucet episodes as told, and in at most 10 % when it is told the other task
- is above the best blind baseline by the paired interval
- loses at least 25 points over the last four tasks when frames are black
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FAUCETS = ("faucet-open-v3", "faucet-close-v3")
DECISIVE = ("window-open-v3", "door-lock-v3", "door-unlock-v3", "button-press-topdown-v3")
TASKS = (*FAUCETS, *DECISIVE)
BLIND = ("random", "mean action", "replay")
RECIPE = "rt1_metaworld_mt6"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/mt6"))
    parser.add_argument("--demonstrations", type=int, default=150, help="of each task (default: 150)")
    parser.add_argument("--episodes", type=int, default=20, help="of each task (default: 20)")
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps; 0: the recipe's")
    parser.add_argument("--noise", type=float, default=0.2, help="on the expert's motion (default: 0.2)")
    parser.add_argument("--workers", type=int, default=2, help="simulators (default: 2)")
    given, extra = parser.parse_known_args()
    began = time.monotonic()
    store = demonstrations(given)
    train(given, store, extra)
    scores = evaluate(given, store)
    claims = checked(scores)
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    minutes = (time.monotonic() - began) / 60
    print(json.dumps({"minutes": round(minutes, 1), "claims": claims, "rates": rates(scores)}))
    return int(not all(claims.values()))


def demonstrations(given: argparse.Namespace) -> Path:
    source, store = given.folder / "rlds/metaworld_sample/1.0.0", given.folder / "stores/metaworld_sample/1.0.0/train"
    if not source.exists():
        words = ["--episodes", given.demonstrations, "--val-episodes", "2", "--noise", given.noise]
        rtp("simulate", given.folder / "rlds", "--tasks", *TASKS, *words, "--workers", given.workers)
    for split in ("train", "val"):
        rtp("preprocess", source, given.folder / "stores", "--split", split)
    return store


def train(given: argparse.Namespace, store: Path, extra: list[str]) -> None:
    words = ["--validation", store.with_name("val"), *(["--loop.steps", given.steps] if given.steps else []), *extra]
    rtp("train", RECIPE, "--data", store, "--output", given.folder / "run", "--resume", *words)


def evaluate(given: argparse.Namespace, store: Path) -> dict[str, Any]:
    """The report of `rtp evaluate --env`."""
    tasks = ",".join(TASKS)
    report, folder = given.folder / "closed_loop.json", given.folder
    words = ["--episodes", given.episodes, "--workers", given.workers, "--data", store, "--output", report]
    words += ["--swap-instructions", "--blank-images", "--video", folder / "videos", "--html", folder / "success.html"]
    rtp("evaluate", folder / "run", "--env", f"metaworld:{tasks}", *words)
    return json.loads(report.read_text())["closed_loop"]


def checked(scores: dict[str, Any]) -> dict[str, bool]:
    """Each claim, and whether it holds."""
    rate = rates(scores)
    policy, blank = rate["policy"], rate["policy with blank images"]
    swapped = rate["policy with swapped instructions"]
    best = max(BLIND, key=lambda name: mean(rate[name], TASKS))
    above = scores["compared"][best]["difference"]["low"]
    told, other, fall = mean(policy, FAUCETS), mean(swapped, FAUCETS), mean(policy, DECISIVE) - mean(blank, DECISIVE)
    return {
        f"all tasks {100 * mean(policy, TASKS):.0f} %, at least 60": mean(policy, TASKS) >= 0.6,
        f"decisive tasks {100 * mean(policy, DECISIVE):.0f} %, at least 50": mean(policy, DECISIVE) >= 0.5,
        f"faucets as told {100 * told:.0f} %, at least 50": told >= 0.5,
        f"faucets told the other {100 * other:.0f} %, at most 10": other <= 0.1,
        f"above {best} by at least {100 * above:.0f} points, more than 0": above > 0,
        f"black frames cost {100 * fall:.0f} points of the decisive tasks, at least 25": fall >= 0.25,
    }


def rates(scores: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Success by actor and task."""
    actors = scores["actors"].items()
    return {name: {task: each["rate"]["mean"] for task, each in own["tasks"].items()} for name, own in actors}


def mean(rate: dict[str, float], tasks: tuple[str, ...]) -> float:
    return sum(rate[task] for task in tasks) / len(tasks)


def rtp(*words: object) -> None:
    """A command; its seconds go to stderr."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "pipelines", *map(str, words)], check=True)
    print(f"{words[0]}: {time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
