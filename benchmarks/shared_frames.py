"""Training on segments of neighbouring windows, whose frames are encoded once, against windows one by one.

Every side makes the same optimizer step: forward and backward of as many windows as the longest segment has, then Adam.
The plain side takes them in micro-batches of the size that was fastest in a search before the rounds, a shared side in
whole segments. Batches are ready beforehand (in training the loader prepares them meanwhile); the crop and the resize
are part of the model and are timed.

`allowed` is the ratio of the operations of `rt_models.cost.rt1_flops`, and `reached` the measured ratio's share of it.
It can pass 1: per-step costs beyond the counted operations are shared as well.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import torch
from measure import Side, in_turn, parser, positive, print_json, ratio, start
from workload import PRESETS, Batch, accumulate, add_presets, batch

from rt_models.cost.rt1_flops import cost
from rt_models.rt1 import RT1

MICRO_BATCHES = {"small": [4, 8, 12, 24]}
"""Sizes that the plain side may choose from; windows of images of 300 pixels need about 2 GB each."""
MICRO_BATCHES_300 = [1, 2, 4]


def main() -> None:
    arguments = _arguments()
    start(arguments)
    results = {preset: compare(preset, arguments) for preset in arguments.presets}
    print_json("shared_frames", arguments, results)


def compare(preset: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides of one preset, printed and returned."""
    config = PRESETS[preset]()
    model = config.build().train()
    step = partial(_step, model, torch.optim.Adam(model.parameters(), lr=1e-4, eps=1e-7))
    num_windows = max(arguments.segments)
    candidates = arguments.micro_batches or MICRO_BATCHES.get(preset, MICRO_BATCHES_300)
    micro_batch = _fastest(preset, model, [size for size in candidates if num_windows % size == 0])
    sides: dict[str, Side] = {"plain": partial(step, _batches(preset, num_windows, micro_batch, 1))}
    for size in arguments.segments:
        sides[f"segments of {size}"] = partial(step, _batches(preset, num_windows // size, 1, size))
    seconds = in_turn(sides, arguments.rounds)

    operations, steps = cost(config), config.num_steps
    windows_per_s = {name: num_windows / statistics.median(times) for name, times in seconds.items()}
    print(f"\n{preset}: {num_windows} windows an optimizer step, {arguments.rounds} rounds")
    print(f"  plain           {windows_per_s['plain']:8.2f} windows/s in micro-batches of {micro_batch}")
    shared = {}
    for size in arguments.segments:
        name = f"segments of {size}"
        measured = ratio(seconds["plain"], seconds[name])
        allowed = operations.training_flops(steps) / operations.training_flops((steps + size - 1) / size)
        reached = measured.median / allowed
        shared[size] = {"ratio": measured.to_json(), "allowed": round(allowed, 3), "reached": round(reached, 3)}
        print(
            f"  {name:15} {windows_per_s[name]:8.2f} windows/s: {measured} times plain, "
            f"{allowed:.2f} allowed, {reached:.2f} of it reached"
        )
    return {"micro_batch": micro_batch, "windows_per_s": windows_per_s, "seconds": seconds, "shared": shared}


def _fastest(preset: str, model: RT1, candidates: list[int]) -> int:
    """The micro-batch with which plain windows take the least time each; prints what each took."""
    batches = {str(size): _batches(preset, size, size, 1) for size in candidates}
    seconds = in_turn({name: partial(accumulate, model, made) for name, made in batches.items()}, rounds=2)
    per_window = {size: min(seconds[str(size)]) / size for size in candidates}
    listed = ", ".join(f"{size}: {each * 1e3:.0f}" for size, each in per_window.items())
    print(f"\n{preset}: forward and backward of a plain window, ms by micro-batch: {listed}", flush=True)
    return min(candidates, key=per_window.__getitem__)


def _batches(preset: str, num_segments: int, segments_at_once: int, size: int) -> list[Batch]:
    """`num_segments` segments of `size` windows, in micro-batches of equal size."""
    count = num_segments // segments_at_once
    return [batch(preset, num_segments=segments_at_once, windows_per_segment=size) for _ in range(count)]


def _step(model: RT1, optimizer: torch.optim.Optimizer, micro_batches: list[Batch]) -> None:
    accumulate(model, micro_batches)
    optimizer.step()


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, rounds=3)
    add_presets(made, "small", "rt1_jax")
    text = "windows of segments (default: 12 24)"
    made.add_argument("--segments", nargs="+", type=positive, default=[12, 24], help=text)
    made.add_argument("--micro-batches", nargs="+", type=positive, help="sizes for the plain side to choose from")
    arguments = made.parse_args()
    if any(max(arguments.segments) % size for size in arguments.segments):
        made.error(f"every segment must divide the longest, {max(arguments.segments)} windows")
    return arguments


if __name__ == "__main__":
    main()
