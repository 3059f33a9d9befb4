"""Early stopping and kills: `rtp tune` with and without ASHA over the same points, and with ASHA killed in the middle.

Prints how many optimizer steps ASHA needs of those without early stopping, whether it finds the same best, and what
two SIGKILLs of the command (with everything it started) change: nothing, if every trial is there and none that had
ended was trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

from preprocessing.convert import ConvertConfig, convert
from tuning.ledger import Ledger

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parent / "examples/metaworld_sample/1.0.0"


def main() -> None:
    parser = measure.parser(__doc__, rounds=None)
    parser.add_argument("--trials", type=measure.positive, default=9, help="points of the space (default: 9)")
    parser.add_argument("--kills", type=int, default=2, help="SIGKILLs of the second sweep with ASHA (default: 2)")
    parser.add_argument("--folder", type=Path, help="where to work and leave everything (default: a folder that goes)")
    arguments = parser.parse_args()
    measure.start(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        results = compare(arguments, arguments.folder or Path(scratch))
    measure.print_json("tune_asha", arguments, results)


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    flags = store_flags(folder)
    flags += ["--budget.trials", str(arguments.trials)]
    whole = finish(start(folder / "whole", [*flags, "--scheduler", "ToTheEnd"]))
    early = finish(start(folder / "early", flags))
    for kill in range(arguments.kills):
        before = kill_midway(folder / "killed", flags, ended=(kill + 1) * arguments.trials // (arguments.kills + 1))
        print(f"killed with {len(before)} trials ended", flush=True)
    killed = finish(start(folder / "killed", [*flags, "--resume"]))
    results = {
        "steps": {name: side["steps"] for name, side in (("whole", whole), ("early", early), ("killed", killed))},
        "share": round(early["steps"] / whole["steps"], 3),
        "best": {name: side["best"] for name, side in (("whole", whole), ("early", early), ("killed", killed))},
        "same_best": early["best"]["parameters"] == whole["best"]["parameters"],
        "same_best_after_kills": killed["best"]["parameters"] == whole["best"]["parameters"],
        "states_after_kills": killed["states"],
        "accounted": sorted(trial["number"] for trial in killed["trials"]) == list(range(arguments.trials)),
        "continued_from_a_checkpoint": sum(trial["attempts"] - 1 for trial in killed["trials"]),
        "ended_and_run_again": again(folder / "killed"),
    }
    for key, value in results.items():
        print(f"{key}: {value}")
    return results


def store_flags(folder: Path) -> list[str]:
    """The shipped episodes as stores; the flags that name them."""
    stores = {}
    for split in ("train", "val"):
        stores[split] = convert(str(SAMPLE), str(folder / "stores"), ConvertConfig(split=split, encoder="hash")).store
    return ["--data", stores["train"], "--validation", stores["val"]]


def start(output: Path, flags: list[str], sweep: Path = HERE / "tune_sweep.py") -> subprocess.Popen[str]:
    """`rtp tune` in a process of its own, with an MLflow database of its own."""
    output.parent.mkdir(parents=True, exist_ok=True)
    database = f"sqlite:///{output.parent}/mlflow.db"
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "MLFLOW_TRACKING_URI": database}
    command = [sys.executable, "-m", "pipelines", "tune", str(sweep), *flags, "--output", str(output), "--json"]
    return subprocess.Popen(command, cwd=output.parent, env=environment, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"rtp tune ended with {process.returncode}: {printed}")
    return json.loads(printed.splitlines()[-1])


def kill_midway(output: Path, flags: list[str], *, ended: int) -> list[int]:
    """Start or continue the sweep, SIGKILL it when so many trials have ended and one is halfway; those that ended."""
    process = start(output, [*flags, "--resume"])
    while True:
        records = Ledger.load(str(output)).ordered()
        if sum(r.ended for r in records) >= ended and any(r.state == "interrupted" and r.step > 3 for r in records):
            break
        if process.poll() is not None:
            raise SystemExit(f"the sweep was over before {ended} trials had ended")
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(3.0)  # Ray's processes notice and go
    done = [record.number for record in Ledger.load(str(output)).ordered() if record.ended]
    snapshot = {number: (output / f"trials/{number:04d}/trial.json").read_text() for number in done}
    (output / "ended-before.json").write_text(json.dumps(snapshot))
    return done


def again(output: Path) -> list[int]:
    """Trials that had ended before the last kill and whose record has changed since."""
    before = json.loads((output / "ended-before.json").read_text())
    return [int(n) for n, text in before.items() if (output / f"trials/{int(n):04d}/trial.json").read_text() != text]


if __name__ == "__main__":
    main()
