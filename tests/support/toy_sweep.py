"""A sweep of toy trials in a process of its own, which tests kill: `python -m tests.support.toy_sweep NAME ROOT`."""

from __future__ import annotations

import sys
from dataclasses import replace

from cluster.session import RaySession, connect
from tests.support.sweeps_for_tests import NUM_STEPS, Toy, clone, population, sweep
from tuning.ledger import Ledger
from tuning.sweep import Asha, Budget, Sweep
from tuning.tuner import TrialRun, run_sweep

SWEEPS: dict[str, Sweep] = {
    "asha": sweep(scheduler=Asha(grace_steps=1, reduction_factor=3), budget=Budget(trials=6), concurrency=2),
    "population": replace(population(), concurrency=2),
}


def main(name: str, root: str) -> None:
    """Run the sweep `name` in the folder `root` and print its outcome."""
    run = TrialRun(function=Toy(step_s=0.1, fail=2), num_steps=NUM_STEPS, clone=clone)
    with connect(RaySession(num_cpus=2)):
        print(run_sweep(SWEEPS[name], Ledger.load(root), run))


if __name__ == "__main__":
    main(*sys.argv[1:])
