"""What RT-1 and RT-2 cost on one GPU, stage by stage, and how that compares with what was aimed at.

    python benchmarks/gpu.py --rt1-pytorch CHECKOUT --out results.jsonl     the core: at most 4 minutes
    python benchmarks/gpu.py --only zero vlm --out results.jsonl            more of it, into the same file
    python benchmarks/gpu.py --toy --only train zero                        small sizes on the CPU, in one process

Each stage is a process of its own with a time limit, the most valuable first, and prints JSON lines as it goes, so
that one which meets its limit keeps what it measured. With --out they are added to a file; a stage that has ended there
is not run again, unless --again is given. A stage that needs what is not installed says so and is skipped: `train`,
`sides`, `control`, `shapes`, `parity` and `profile` need torch alone, `vlm` transformers too.

Times are medians of steps after warm-up, between device synchronisations; `first_s` is what the first step of its kind
took. At the end stands a table of the aims, from all results in the file.

The core:
- train: optimizer steps on segments and on plain windows, in our Triton kernels and as one CUDA graph; torchvision's
  bare EfficientNet-B3
- port: rt1-pytorch as published, and under the same autocast
- loop: `rtp train` in process on segments, against the bare loop
- control: one action each for 1, 8 and 32 robots, as a CUDA graph and without

By name:
- zero: DeepSpeed's ZeRO-1 and 3 against plain PyTorch, and how often each makes the host wait
- vlm: PaliGemma-3B of random weights, all of it trained and LoRA, utilisation by real tokens
- loader: what 1, 2, 4 and more cores deliver, against what the model takes
- ray: the training of `loop` on one Ray worker
- parity: our kernels against torch's, a padded batch against the batch alone
- sides: `train` with cuDNN's depthwise convolutions, in torch's kernels, and compiled; our bare backbone
- loop_sides: `loop` on plain windows, and without CUDA graphs
- profile: where the device time of a training step goes, by class of kernel
- shapes: which convolutions pay for a new number of images
- vlm_reading: how long a PaliGemma-3B takes to lie on the device
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_stages.aims import aims, table
from gpu_stages.settings import Line, Settings, Skipped

REPOSITORY = Path(__file__).resolve().parents[1]
OURS = ("benchmarks", "cluster", "gpu_stages", "pipelines", "preprocessing", "rt_models", "tuning", "workload")
REFUSED = 2


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The function of the stage's name in a module of gpu_stages."""

    module: str
    limit_s: int
    is_core: bool = False


STAGES = {
    "train": Stage(module="training", limit_s=75, is_core=True),
    "port": Stage(module="port", limit_s=40, is_core=True),
    "loop": Stage(module="loop", limit_s=80, is_core=True),
    "control": Stage(module="control", limit_s=45, is_core=True),
    "zero": Stage(module="zero", limit_s=150),
    "vlm": Stage(module="vlm", limit_s=150),
    "loader": Stage(module="loader", limit_s=120),
    "ray": Stage(module="loop", limit_s=180),
    "parity": Stage(module="kernels", limit_s=100),
    "sides": Stage(module="training", limit_s=240),
    "loop_sides": Stage(module="loop", limit_s=200),
    "profile": Stage(module="kernels", limit_s=60),
    "shapes": Stage(module="kernels", limit_s=150),
    "vlm_reading": Stage(module="vlm", limit_s=150),
}
CORE = [name for name, stage in STAGES.items() if stage.is_core]


def main() -> int:
    arguments = _arguments()
    if arguments.inside:
        return _run_here(arguments)
    with tempfile.TemporaryDirectory() as folder:
        arguments.out = arguments.out or Path(folder, "results.jsonl")
        ended = {line["stage"] for line in _lines(arguments) if line.get("ended") == 0}
        due = [name for name in arguments.only if arguments.again or name not in ended]
        for name in [name for name in arguments.only if name not in due]:
            print(f"{name}: its results are in {arguments.out}; --again measures once more", flush=True)
        before = len(_lines(arguments))
        for group in [due] if arguments.toy and due else [[name] for name in due]:
            _run_apart(arguments, group)
        print(table(aims(_lines(arguments)), judged=not arguments.toy))
        new = _lines(arguments)[before:]
    return int(any(line["ended"] != 0 for line in new if "ended" in line))


def _lines(arguments: argparse.Namespace) -> list[Line]:
    """The results in --out, of toy sizes or of real ones."""
    found: list[Line] = []
    for text in arguments.out.read_text().splitlines() if arguments.out.exists() else ():
        with suppress(json.JSONDecodeError):  # a process was ended while it wrote
            line = json.loads(text)
            found += [line] if line.get("toy", False) == arguments.toy else []
    return found


def _run_apart(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """In a process that is ended, with what it has started, at the stages' limit."""
    command = [sys.executable, __file__, "--inside", "--only", *names, "--out", str(arguments.out.absolute())]
    command += ["--toy"] if arguments.toy else []
    for flag, value in (("--rt1-pytorch", arguments.rt1_pytorch), ("--packages", arguments.packages)):
        command += [] if value is None else [flag, str(value)]
    limit_s, began, before = sum(STAGES[name].limit_s for name in names), time.monotonic(), len(_lines(arguments))
    process = subprocess.Popen(command, start_new_session=True)
    try:
        why = f"exit code {process.wait(timeout=limit_s)}"
    except subprocess.TimeoutExpired:
        why = f"cut off after {limit_s} s"
    finally:
        _end(process)
    if process.returncode == REFUSED:
        raise SystemExit(REFUSED)
    told = {line["stage"] for line in _lines(arguments)[before:] if "ended" in line or "skipped" in line}
    for name in names:
        if name not in told:
            _say(arguments, stage=name, ended=why, seconds=round(time.monotonic() - began, 1))


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _run_here(arguments: argparse.Namespace) -> int:
    """The stages one after another; of each a line that says on what it was measured, its results, and its end."""
    settings = Settings(toy=arguments.toy, rt1_pytorch=arguments.rt1_pytorch)
    sys.path += [str(arguments.packages)] if arguments.packages else []
    failed = False
    for name in arguments.only:
        began = time.monotonic()
        ended: Any = 0
        try:
            _say(arguments, stage=name, **_machine(arguments))
            for line in getattr(importlib.import_module(f"gpu_stages.{STAGES[name].module}"), name)(settings):
                _say(arguments, stage=name, **line)
        except (Skipped, ModuleNotFoundError) as error:
            if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in OURS:
                raise
            _say(arguments, stage=name, skipped=f"needs {error if isinstance(error, Skipped) else error.name}")
            continue
        except Exception as error:
            traceback.print_exc()
            ended, failed = f"{type(error).__name__}: {' '.join(str(error).split()):.200}", True
        _say(arguments, stage=name, ended=ended, seconds=round(time.monotonic() - began, 1))
    return int(failed)


def _machine(arguments: argparse.Namespace) -> Line:
    """Ends the process where there is no GPU, or where the file has results of another device."""
    import torch
    from gpu_stages.timing import device_name, on_gpu

    if not (on_gpu() or arguments.toy):
        print("torch sees no GPU here: --toy runs the stages at small sizes on the CPU")
        raise SystemExit(REFUSED)
    here = device_name()
    others = {line["device"] for line in _lines(arguments) if "device" in line} - {here} if arguments.out else set()
    if others:
        print(f"{arguments.out} has results of {', '.join(others)}, and this is {here}: give another --out")
        raise SystemExit(REFUSED)
    commit = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(commit, capture_output=True, text=True, check=False)
    return {"device": here, "torch": torch.__version__, "commit": found.stdout.strip() or "unknown"}


def _say(arguments: argparse.Namespace, **values: Any) -> None:
    line = json.dumps({**values, "toy": True} if arguments.toy else values)
    print(line, flush=True)
    if arguments.out is not None:
        before = arguments.out.read_bytes() if arguments.out.exists() else b""
        with arguments.out.open("a") as file:
            file.write(("" if before.endswith(b"\n") or not before else "\n") + line + "\n")


def _arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = f"stages (default: {' '.join(CORE)}; all: {' '.join(STAGES)})"
    made.add_argument("--only", nargs="+", choices=[*STAGES, "all"], default=CORE, metavar="STAGE", help=text)
    made.add_argument("--out", type=Path, help="file of JSON lines that results are added to")
    made.add_argument("--again", action="store_true", help="also run stages that have ended in --out")
    made.add_argument("--rt1-pytorch", type=Path, help="checkout of Rohan138/rt1-pytorch at 492c4e3, for port")
    made.add_argument("--packages", type=Path, help="folder of what it imports, such as torchvision")
    made.add_argument("--toy", action="store_true", help="small sizes, in one process, in seconds on a CPU")
    made.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = made.parse_args()
    arguments.only = list(STAGES) if "all" in arguments.only else list(dict.fromkeys(arguments.only))
    for folder in (arguments.rt1_pytorch, arguments.packages):
        if folder is not None and not folder.is_dir():
            made.error(f"{folder} is not a folder")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
