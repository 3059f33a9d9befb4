"""Peak memory of forward and backward, per window: plain windows, segments, by mode of activation checkpointing.

Every case is a process of its own. Reported is its peak resident set over what it held just before the forward pass
(torch, the model and the batch); gradients are in it, optimizer state is not. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which checkpointing imports: 150 MB of code that are no activations
from measure import parser, positive, print_json, start
from workload import PRESETS, accumulate, add_presets, batch

GIBIBYTE = 2**30
MODES = ("off", "selective", "blocks")


def main() -> None:
    arguments = _arguments()
    if arguments.case:
        preset, size, checkpointing = arguments.case
        torch.set_num_threads(arguments.threads)
        print(json.dumps(peak_bytes(preset, int(size), checkpointing)))
        return
    start(arguments)
    results: dict[str, Any] = {}
    for preset in arguments.presets:
        steps = PRESETS[preset]().num_steps
        print(f"\n{preset}: GiB above model and batch, and per window, by mode of activation checkpointing")
        for size in [1, *arguments.segments]:
            held = {mode: _in_a_process(preset, size, mode, arguments.threads) for mode in MODES}
            results.setdefault(preset, {})[size] = {f"{mode}_bytes": value for mode, value in held.items()}
            cells = (
                f"{mode} {value / GIBIBYTE:.2f} ({value / size / GIBIBYTE:.3f}), 1/{held['off'] / value:.2f}"
                for mode, value in held.items()
            )
            print(f"  {size:2} windows, {steps + size - 1:2} frames: {'; '.join(cells)}", flush=True)
    print_json("peak_memory", arguments, results)


def peak_bytes(preset: str, windows_per_segment: int, checkpointing: str) -> int:
    """Of this process, for one segment."""
    config = PRESETS[preset]()
    compute = replace(config.compute, activation_checkpointing=checkpointing)
    model = replace(config, compute=compute).build().train()
    micro_batch = batch(preset, num_segments=1, windows_per_segment=windows_per_segment)
    before = status_bytes("VmRSS")
    accumulate(model, [micro_batch])
    return status_bytes("VmHWM") - before


def _in_a_process(preset: str, size: int, checkpointing: str, threads: int) -> int:
    command = [sys.executable, __file__, "--threads", str(threads), "--case", preset, str(size), checkpointing]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def status_bytes(field: str) -> int:
    """Not from `resource`: its ru_maxrss of a fresh process begins at the peak of the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, rounds=None)
    add_presets(made, "small", "rt1_jax")
    text = "windows of segments (default: 12 24)"
    made.add_argument("--segments", nargs="+", type=positive, default=[12, 24], help=text)
    made.add_argument("--case", nargs=3, metavar=("PRESET", "WINDOWS", "|".join(MODES)), help="measure one, here")
    return made.parse_args()


if __name__ == "__main__":
    main()
