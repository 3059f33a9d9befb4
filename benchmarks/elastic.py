"""A training that grows and shrinks with its cluster, 1 -> 2 -> 1 workers, against one worker that is left alone.

A second Ray node joins while the tiny RT-1 trains on one, and later its raylet is killed. The program fails unless the
training had one, two and one worker in turn, every step was trained on the samples of the undisturbed training, none
twice, and the losses agree to a relative 1e-4 (another number of ranks sums in another order). BatchNorm is frozen:
synchronised statistics are those of a micro-batch on every worker, of more frames the more workers there are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from measure import positive
from ray_nodes import Training, running_nodes, store, until

from pipelines.training.run_files import METRICS, final_samples, read_metrics, read_samples

FROZEN = ("--model.backbone.batch_norm.statistics", "frozen")
TOLERANCE = 1e-4


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="elastic-") as scratch, running_nodes(Path(scratch), 1) as nodes:
        stores = [store(split, scratch) for split in ("train", "val")]
        fixed, elastic = Path(scratch, "fixed"), Path(scratch, "elastic")
        Training(nodes, stores, fixed, arguments.steps, {"num_workers": 1}, FROZEN).finish()
        launch = {"num_workers": "1 2", "resize_check_s": 2}
        training = Training(nodes, stores, elastic, arguments.steps, launch, FROZEN)
        training.wait_for_step(arguments.steps // 4)
        nodes.start_second()
        until(lambda: worlds(elastic)[-1:] == [2], "the training does not grow")
        training.wait_for_step(training.last_step() + arguments.steps // 4)
        nodes.kill_second()
        training.finish()
        complaints = differences(fixed, elastic)
        seen, off = worlds(elastic), deviations(fixed, elastic)
    largest = max(off.values())
    results = {"worlds": seen, "largest relative difference of a loss": largest, "complaints": complaints}
    print(f"workers in turn: {seen}; losses differ by at most {largest:.1e} over {len(off)} steps")
    print(json.dumps({"benchmark": "elastic", "settings": vars(arguments), "results": results}))
    if seen != [1, 2, 1]:
        complaints.append(f"the numbers of workers were {seen} and not 1, 2, 1")
    if complaints:
        raise SystemExit("; ".join(complaints))


def worlds(run: Path) -> list[int]:
    """The numbers of workers, each time it changed."""
    sizes: list[int] = []
    for line in sorted(read_samples(run), key=lambda line: (line["attempt"], line["step"])):
        if sizes[-1:] != [line["world"]]:
            sizes.append(line["world"])
    return sizes


def differences(fixed: Path, elastic: Path) -> list[str]:
    """What tells the two trainings apart beyond the tolerance."""
    found = []
    one, two = (final_samples(run) for run in (fixed, elastic))
    if one != two:
        found.append(f"the samples differ, first at step {min(step for step in one if one[step] != two.get(step))}")
    ids = sorted(sample[0] for step in two.values() for sample in step)
    if ids != list(range(len(ids))):
        found.append("the samples trained on are not the first of the run, each once")
    off = deviations(fixed, elastic)
    far = [step for step in off if off[step] > TOLERANCE]
    if far:
        found.append(f"the loss differs at {len(far)} steps, first at step {min(far)}")
    return found


def deviations(fixed: Path, elastic: Path) -> dict[int, float]:
    """Of each step, the relative difference of the loss."""
    one, two = _losses(fixed), _losses(elastic)
    return {step: abs(two.get(step, float("inf")) / one[step] - 1) for step in one}


def _losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(run / METRICS) if "loss" in line}


def _arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--steps", type=positive, default=1200, help="optimizer steps (default: 1200)")
    return made.parse_args()


if __name__ == "__main__":
    main()
