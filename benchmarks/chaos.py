"""A training whose workers, nodes and driver are killed again and again, against the same training left alone.

Two Ray nodes on this machine, one worker on each; the tiny RT-1 trains on the shipped robot episodes. Kills are drawn
from a seed: what dies (a worker, the raylet of the second node, the driver), after which step, and in which moment
(anywhere, while a checkpoint is being written, while the validation loss is being taken). A dead node is replaced by a
new one, a dead driver by `rtp train ... --resume`; the rest is for the pipeline to mend.

The program fails unless the killed training logs the loss of every step and ends with the weights of the undisturbed
one, to the last bit, and unless every step was trained on the same samples, none of them twice. What a kill costs is a
checkpoint interval and the steps made while the newest checkpoint was still being written; at most one is written at a
time, so never more than two intervals.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import positive
from ray_nodes import CHECKPOINT_EVERY, Training, running_nodes, store

from cluster.shards import each_weight
from cluster.storage import CheckpointFolder
from pipelines.training.run_files import METRICS, final_samples, read_metrics, read_samples

VICTIMS = ("worker", "raylet", "driver")
MOMENTS = ("any", "save", "evaluation")


@dataclass(frozen=True, kw_only=True)
class Kill:
    """After `step` has been logged, in the given moment, this many seconds later."""

    victim: str
    moment: str
    step: int
    delay_s: float


@dataclass(kw_only=True)
class Outcome:
    """What one kill did: the last step logged before it and the one that training went on after."""

    kill: Kill
    reached: int
    resumed: int = -1
    seconds: float = 0.0
    hit: bool = True
    """Whether the moment was met: something was being saved, or evaluated, as the signal was sent."""


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    kills = draw(arguments.kills, arguments.steps, arguments.seed)
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch, running_nodes(Path(scratch), 2) as nodes:
        stores = [store(split, scratch) for split in ("train", "val")]
        calm, wild = Path(scratch, "calm"), Path(scratch, "wild")
        Training(nodes, stores, calm, arguments.steps, {"num_workers": 2}).finish()
        outcomes = disturb(Training(nodes, stores, wild, arguments.steps, {"num_workers": 2}), kills)
        complaints = differences(calm, wild, arguments.steps)
        recomputed = recomputed_steps(wild)
    if max(recomputed) > 2 * CHECKPOINT_EVERY:
        complaints.append(f"{max(recomputed)} steps were lost at once, with {CHECKPOINT_EVERY} between checkpoints")
    print(
        f"{len(outcomes)} kills over {arguments.steps} steps: {sum(recomputed)} steps trained again, at most "
        f"{max(recomputed)} after a kill, with {CHECKPOINT_EVERY} between checkpoints"
    )
    results = {"complaints": complaints, "recomputed": recomputed, "outcomes": [_plain(o) for o in outcomes]}
    print(json.dumps({"benchmark": "chaos", "settings": vars(arguments), "results": results}))
    if complaints:
        raise SystemExit("; ".join(complaints))
    print("losses, weights and samples are those of the undisturbed training, to the last bit")


def draw(count: int, steps: int, seed: int) -> list[Kill]:
    """Every victim in every moment before any is repeated, at random steps in order, none near the end.

    Raises ValueError where there are too few steps: a training may go some way on while a moment is waited for.
    """
    if steps <= 5 * CHECKPOINT_EVERY:
        raise ValueError(f"--steps must be above {5 * CHECKPOINT_EVERY}, got {steps}")
    dice = random.Random(seed)
    pairs = [(victim, MOMENTS[(number + shift) % 3]) for shift in range(3) for number, victim in enumerate(VICTIMS)]
    chosen = [pairs[number % len(pairs)] for number in range(count)]
    dice.shuffle(chosen)
    at = sorted(dice.randrange(1, steps - 4 * CHECKPOINT_EVERY) for _ in range(count))
    return [
        Kill(victim=victim, moment=moment, step=step, delay_s=dice.uniform(0, 0.3) if moment == "any" else 0.0)
        for (victim, moment), step in zip(chosen, at, strict=True)
    ]


def disturb(training: Training, kills: list[Kill]) -> list[Outcome]:
    """Kill one after another, waiting each time until training goes on, and then to the end."""
    outcomes: list[Outcome] = []
    for kill in kills:
        training.wait_for_step(kill.step)
        outcome = Outcome(kill=kill, reached=0, hit=training.wait_for_moment(kill.moment))
        time.sleep(kill.delay_s)
        began = time.monotonic()
        training.kill(kill.victim)
        outcome.reached = training.last_step()
        outcome.resumed = training.wait_for_progress() - 1
        outcome.seconds = time.monotonic() - began
        outcomes.append(outcome)
        print(
            f"{kill.victim:6} in {kill.moment:10} ({'hit' if outcome.hit else 'missed'}) after step "
            f"{outcome.reached:4}: went on after step {outcome.resumed:4}, {outcome.seconds:.1f} s later",
            flush=True,
        )
    training.finish()
    return outcomes


def differences(calm: Path, wild: Path, steps: int) -> list[str]:
    """What tells the disturbed run from the undisturbed one; nothing, if all is well."""
    found = []
    for name in ("loss", "gradient_norm", "learning_rate", "validation_loss"):
        one, two = ({line["step"]: line[name] for line in _metrics(run) if name in line} for run in (calm, wild))
        wrong = [step for step in one.keys() | two.keys() if one.get(step) != two.get(step)]
        if wrong:
            found.append(f"{name} differs at {len(wrong)} steps, first at step {min(wrong)}")
    if [line["step"] for line in _metrics(wild) if "loss" in line] != list(range(1, steps + 1)):
        found.append("a step is missing from the log, or stands there twice")
    one, two = (final_samples(run) for run in (calm, wild))
    if one != two:
        found.append(f"the samples differ, first at step {min(step for step in one if one[step] != two.get(step))}")
    ids = [sample[0] for step in two.values() for sample in step]
    if sorted(ids) != list(range(len(ids))):
        found.append("the samples trained on are not the first of the run, each once")
    before, after = (_weights(run) for run in (calm, wild))
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    if changed:
        found.append(f"{len(changed)} of {len(before)} weights differ, such as {changed[0]}")
    return found


def recomputed_steps(run: Path) -> list[int]:
    """Of each attempt after the first that came to train a step: how many of the steps before it were lost."""
    lines = [line for line in read_samples(run) if line["rank"] == 0]
    repeated, reached = [], 0
    for attempt in sorted({line["attempt"] for line in lines}):
        steps = [line["step"] for line in lines if line["attempt"] == attempt]
        repeated.append(reached + 1 - min(steps))
        reached = max(steps)
    return repeated[1:]


def _metrics(run: Path) -> list[dict[str, Any]]:
    return read_metrics(run / METRICS)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    folder = CheckpointFolder(run / "checkpoints")
    latest = folder.latest()
    assert latest is not None, f"{run} holds no checkpoint"
    return dict(each_weight(folder.fetch(latest, run) / "engine"))


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {**vars(outcome.kill), **{name: value for name, value in vars(outcome).items() if name != "kill"}}


def _arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--kills", type=positive, default=20, help="(default: 20)")
    made.add_argument("--steps", type=positive, default=400, help="optimizer steps of the training (default: 400)")
    made.add_argument("--seed", type=int, default=0, help="of the kills (default: 0)")
    return made.parse_args()


if __name__ == "__main__":
    main()
