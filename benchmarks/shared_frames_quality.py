"""Held-out loss after equal wall time: segments of neighbouring windows against windows one by one.

Windows of a segment are alike, so a step on them teaches less than one on as many windows drawn alone; they are also
cheaper. Which wins is a matter of time, not of steps. Both sides train the `small` preset on the shipped episodes from
the same first weights, in turn, a slice of wall time each, so that a busy machine is busy for both. The learning rate
falls over a side's time as it does over a run's steps. The loss is over all windows of the validation episodes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import parser, positive, print_json, start

from pipelines.config.optimizer import AdamWConfig
from pipelines.config.schedule import CosineSchedule
from pipelines.preprocess import PreprocessConfig, preprocess
from pipelines.recipes.rt1_metaworld import recipe
from pipelines.training.data import open_reader, training_contract
from preprocessing.loading.loader import Loader, WindowReader
from preprocessing.store.episode_store import EpisodeStore

SAMPLE = Path(__file__).resolve().parents[1] / "examples" / "metaworld_sample" / "1.0.0"
SLICE_S = 2.0
SCHEDULE = CosineSchedule(final_factor=0.02)


class Side:
    """One training, by wall time."""

    def __init__(self, reader: WindowReader, *, windows: int, segment: int, seconds: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = recipe().model.build().train()
        self.config = AdamWConfig(lr=2e-3, weight_decay=0.05)
        self.optimizer = self.config.build(self.model)
        sizes = {"global_batch": windows, "micro_batch": windows, "segment_windows": segment}
        self.batches = iter(Loader(reader, seed=seed, lanes=48, **sizes))
        self.seconds, self.trained_s, self.steps = seconds, 0.0, 0

    def train_slice(self) -> None:
        until = min(self.trained_s + SLICE_S, self.seconds)
        while self.trained_s < until:
            began = time.perf_counter()
            self._step()
            self.trained_s += time.perf_counter() - began

    def _step(self) -> None:
        factor = SCHEDULE.factor(round(1000 * self.trained_s / self.seconds), 1001)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor
        self.optimizer.zero_grad()
        self.model.loss(next(self.batches)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1

    @torch.no_grad()
    def held_out_loss(self, reader: WindowReader) -> float:
        self.model.eval()
        rows = np.arange(reader.index.num_rows)
        parts = np.array_split(rows, -(-len(rows) // 64))
        return sum(float(self.model.loss(reader.read(part, part))) * len(part) for part in parts) / len(rows)


def main() -> None:
    arguments = _arguments()
    start(arguments)
    with tempfile.TemporaryDirectory(prefix="shared-frames-") as scratch:
        train, val = _readers(Path(scratch))
        results = [compare(train, val, seed, arguments) for seed in range(arguments.seeds)]
    gain = [result["plain"]["held_out_loss"] - result["segments"]["held_out_loss"] for result in results]
    print(f"held-out loss of segments is lower by {statistics.median(gain):.4f} ({min(gain):.4f} to {max(gain):.4f})")
    print_json("shared_frames_quality", arguments, {"seeds": results, "lower_by": gain})


def compare(train: WindowReader, val: WindowReader, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides from one seed, printed and returned."""
    plain, segment = arguments.plain_windows, arguments.segment
    sides = {
        "plain": Side(train, windows=plain, segment=1, seconds=arguments.seconds, seed=seed),
        "segments": Side(
            train, windows=arguments.segments * segment, segment=segment, seconds=arguments.seconds, seed=seed
        ),
    }
    while any(side.trained_s < side.seconds for side in sides.values()):
        for side in sides.values():
            side.train_slice()
    found = {}
    for name, side in sides.items():
        found[name] = {"held_out_loss": side.held_out_loss(val), "steps": side.steps, "seconds": side.trained_s}
        print(f"seed {seed}, {name:<9}{side.steps:>6} steps in {side.trained_s:.0f} s", end="")
        print(f": held-out loss {found[name]['held_out_loss']:.4f}", flush=True)
    return found


def _readers(scratch: Path) -> tuple[WindowReader, WindowReader]:
    """Training and validation episodes of the sample, both in the model values of the training run."""
    stores = []
    for split in ("train", "val"):
        made = preprocess(str(SAMPLE), str(scratch), PreprocessConfig(split=split, encoder="hash", workers=0))
        stores.append(EpisodeStore.open(made.store, split=split))
    contract = training_contract(recipe(), stores[:1])
    train, val = (open_reader(recipe(), [store], contract) for store in stores)
    assert isinstance(train, WindowReader) and isinstance(val, WindowReader)
    return train, val


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, rounds=None)
    made.add_argument("--seconds", type=float, default=60.0, help="training time of a side (default: 60)")
    made.add_argument("--seeds", type=positive, default=3, help="pairs of trainings (default: 3)")
    made.add_argument("--segment", type=positive, default=12, help="windows of a segment (default: 12)")
    made.add_argument("--segments", type=positive, default=4, help="segments a step (default: 4)")
    made.add_argument("--plain-windows", type=positive, default=32, help="windows a plain step (default: 32)")
    arguments = made.parse_args()
    arguments.freed_memory = "keep"
    return arguments


if __name__ == "__main__":
    main()
