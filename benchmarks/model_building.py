"""Seconds and memory until a trained RT-2 on a PaliGemma is there, with and without first values of its own.

A model of random weights is saved as a pretrained folder and, as trained weights, in one safetensors file. Each
measurement is a process of its own, which builds the model and reads the trained weights into it:

- drawn: its first weights are drawn, as a registered model's were, whose folder holds no pretrained weights
- read: its first weights are the pretrained folder's, as those of a run that is resumed were
- left: what lies in the memory is left there until the trained weights come, all at once
- filled: as `rtp` does it now, in both cases: left, and the trained weights come one tensor at a time

Reported are medians over rounds, and the peak resident set above that of the process before. Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from measure import parser, positive, print_json, start
from peak_memory import GIBIBYTE, status_bytes
from rt2_training import save_model
from safetensors.torch import load_file, save_file

from pipelines.publishing.weights import each_tensor, fill, without_weights
from rt_models.blocks.initial_values import weights_follow
from rt_models.language.action_vocabulary import IntegerTokens
from rt_models.language.prompts import RT2TextConfig
from rt_models.rt2_vlm import RT2VLMConfig

SIZES = {"tiny": (4_000, 256, 6), "medium": (64_000, 1024, 12)}
"""Vocabulary, width and layers of the language model."""
SIDES = ("drawn", "read", "left", "filled")
WEIGHTS = "trained.safetensors"


def main() -> None:
    arguments = _arguments()
    if arguments.case:
        torch.set_num_threads(arguments.threads)
        print(json.dumps(measured(*arguments.case)))
        return
    start(arguments)
    results = {}
    for name in arguments.sizes:
        vocabulary, width, layers = SIZES[name]
        with tempfile.TemporaryDirectory() as folder:
            save_model(Path(folder), vocabulary, width=width, layers=layers)
            model = _config(folder).build()
            state = {key: value.clone() for key, value in model.state_dict().items()}
            save_file(state, Path(folder, WEIGHTS))
            size = sum(value.numel() * value.element_size() for value in model.parameters())
            del model, state
            found = {side: [] for side in SIDES}
            for _ in range(arguments.rounds):
                for side in SIDES:
                    found[side].append(_in_a_process(folder, side, arguments.threads))
        medians = {
            side: [statistics.median(column) for column in zip(*runs, strict=True)] for side, runs in found.items()
        }
        results[name] = {"model_bytes": size, "seconds_and_bytes": medians}
        cells = (f"{side} {seconds:.2f} s, {held / GIBIBYTE:.2f} GiB" for side, (seconds, held) in medians.items())
        print(f"{name}, {size / GIBIBYTE:.2f} GiB of weights: {'; '.join(cells)}", flush=True)
    print_json("model_building", arguments, results)


def measured(folder: str, side: str) -> tuple[float, int]:
    """(seconds, bytes above what the process held before) of one model."""
    import transformers.models.paligemma.modeling_paligemma  # noqa: F401

    config = _config(folder, weights="random" if side == "drawn" else "pretrained")
    before, began = status_bytes("VmRSS"), time.perf_counter()
    if side == "filled":
        fill(without_weights(config, None), each_tensor(Path(folder, WEIGHTS), None))
    else:
        with weights_follow() if side == "left" else nullcontext():
            model = config.build()
        model.load_state_dict(load_file(Path(folder, WEIGHTS)))
    return time.perf_counter() - began, status_bytes("VmHWM") - before


def _config(folder: str, weights: str = "pretrained") -> RT2VLMConfig:
    return RT2VLMConfig(path=folder, weights=weights, text=RT2TextConfig(vocabulary=IntegerTokens()))  # type: ignore[arg-type]


def _in_a_process(folder: str, side: str, threads: int) -> tuple[float, int]:
    command = [sys.executable, __file__, "--threads", str(threads), "--case", folder, side]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, rounds=None)
    made.add_argument("--rounds", type=positive, default=3, help="processes of each side (default: 3)")
    made.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="models (default: all)")
    made.add_argument("--case", nargs=2, metavar=("FOLDER", "|".join(SIDES)), help="measure one, here")
    return made.parse_args()


if __name__ == "__main__":
    main()
