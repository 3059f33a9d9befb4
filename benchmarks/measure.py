"""Measuring sides against each other: in one process, in turn, round after round.

A busy machine is then busy for every side, and the ratio of a round's two times says more than either time. Reported
are the median seconds of a side and the median over rounds of the ratios, with their extremes.

Unless told otherwise, glibc is made to keep what is freed. Left alone it returns large blocks to the system, and
clearing the pages of the next ones took a third of a pass over six 300-pixel frames, and little of a pass over one:
the side that computes more would be slow for a reason that a setting removes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Side = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as long one side takes as another, over the rounds."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f} to {self.highest:.2f})"

    def to_json(self) -> dict[str, float]:
        return {"median": round(self.median, 3), "lowest": round(self.lowest, 3), "highest": round(self.highest, 3)}


def parser(description: str | None, *, rounds: int | None) -> argparse.ArgumentParser:
    """Arguments that the benchmarks share; `rounds` None is for one that does not measure time."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=positive, default=2, help="torch threads (default: 2)")
    if rounds is not None:
        text = f"timed rounds, each with every side once (default: {rounds})"
        made.add_argument("--rounds", type=positive, default=rounds, help=text)
        text = "what malloc does with freed memory (default: keep)"
        made.add_argument("--freed-memory", choices=["keep", "system-default"], default="keep", help=text)
    return made


def positive(text: str) -> int:
    """An integer of at least 1, from the command line."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def start(arguments: argparse.Namespace) -> None:
    """Set the threads, the seed and the allocator, and print what the numbers are worth."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    freed_memory = getattr(arguments, "freed_memory", "system-default")
    if freed_memory == "keep":
        _keep_freed_memory()
    print("; ".join(f"{key} {value}" for key, value in machine().items()), end="; ")
    print(f"freed memory: {freed_memory}", flush=True)


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def in_turn(sides: Mapping[str, Side], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round; one round before is not counted."""
    for side in sides.values():
        side()
    names, seconds = list(sides), {name: [] for name in sides}
    for number in range(rounds):
        # Every other round runs backwards: what a side leaves behind (caches, heat) then falls on both neighbours.
        for name in names if number % 2 == 0 else names[::-1]:
            began = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> Ratio:
    """Of the seconds of two sides, round by round."""
    each = [a / b for a, b in zip(slow, fast, strict=True)]
    return Ratio(median=statistics.median(each), lowest=min(each), highest=max(each))


def print_json(benchmark: str, arguments: argparse.Namespace, results: Any) -> None:
    """The last line, for scripts."""
    found = {"benchmark": benchmark, "machine": machine(), "settings": vars(arguments), "results": results}
    print(json.dumps(found, default=str))


def _keep_freed_memory() -> None:
    """No block of its own for large sizes, and no return of the heap's end: constants of glibc's malloc.h."""
    trim_threshold, mmap_max, largest = -1, -4, 2**31 - 1
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not (mallopt(mmap_max, 0) and mallopt(trim_threshold, largest)):
        raise SystemExit("this malloc is not glibc's: pass --freed-memory system-default")


def _cpu_name() -> str:
    """The processor's name where the system gives it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
