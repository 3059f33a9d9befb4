"""What `rtp doctor` says a worker will hold in memory, beside what it holds: real trainings, one after another.

    python benchmarks/doctor_estimates.py --robot STORE --web STORE

Each recipe is trained for some steps by the real command line, in one process and with a micro-batch an update; its
peak is taken from the metrics (on a CPU the largest resident set) and compared with the doctor's figure for the same
flags. On a CPU that figure is of a run of some hundred steps: until then malloc keeps more and more holes, which
batches of other sizes leave. Exit code 1 where one is off by more than --within.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import positive

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPES = ("rt1_tiny", "rt1_metaworld", "rt2_tiny")


def main() -> int:
    arguments = _arguments()
    results = {}
    for recipe in arguments.recipes:
        stores = [arguments.robot, *([arguments.web] if recipe.startswith("rt2") else [])]
        flags = [recipe, "--data", *stores, "--loop.steps", str(arguments.steps), "--loop.log-every", "20"]
        flags += ["--launch", "InProcess", "--engine", "TorchEngineConfig"]
        flags += ["--loop.micro-batch", str(arguments.micro_batch), "--loop.global-batch", str(arguments.micro_batch)]
        with tempfile.TemporaryDirectory() as folder:
            estimate = _rtp("doctor", *flags, folder=folder)["forecast"]
            measured = _rtp("train", *flags, "--output", f"{folder}/run", folder=folder)["memory_gb"] * 1e9
        state, temporary = (estimate[name][str(estimate["stage"])] for name in ("state", "temporary"))
        estimated = estimate["host"][str(estimate["stage"])]
        results[recipe] = {"estimated": estimated, "measured": measured, "off": estimated / measured - 1}
        print(
            f"{recipe:<14} estimated {estimated / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB "
            f"({100 * results[recipe]['off']:+.0f} %): process {estimate['process'] / 1e6:.0f}, loader "
            f"{estimate['loader'] / 1e6:.0f}, activations {(estimate['activations'] or 0) / 1e6:.0f}, kept "
            f"{estimate['kept'] / 1e6:.0f}, state {state / 1e6:.0f}, update {temporary / 1e6:.0f} MB",
            flush=True,
        )
    print(json.dumps({"benchmark": "doctor_estimates", "steps": arguments.steps, "results": results}))
    return int(any(abs(result["off"]) > arguments.within for result in results.values()))


def _rtp(*arguments: str, folder: str) -> dict[str, Any]:
    """The last line of a command that may find something wrong with this machine but must run."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    command = [sys.executable, "-m", "pipelines", *arguments, "--json"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise SystemExit(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--robot", required=True, type=_absolute, help="store of the shipped episodes, split train")
    made.add_argument("--web", required=True, type=_absolute, help="store of image-text examples, for RT-2")
    made.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    made.add_argument("--steps", type=positive, default=200, help="optimizer steps (default: 200)")
    made.add_argument("--micro-batch", type=positive, default=16, help="samples a step (default: 16)")
    made.add_argument("--within", type=float, default=0.2, help="largest share to be off by (default: 0.2)")
    return made.parse_args()


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


if __name__ == "__main__":
    sys.exit(main())
