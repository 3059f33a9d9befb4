"""What a run writes beside its checkpoints: metrics.jsonl, and on request which samples each rank trained on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypedDict

import torch

from cluster.context import WorkerContext
from pipelines.terminal.atomic_files import whole_lines, write_whole

METRICS = "metrics.jsonl"
Metrics: TypeAlias = dict[str, float]
"""One line of metrics.jsonl: step, time in seconds since 1970, and what was measured."""


class SampleLine(TypedDict):
    """One line of a sample log: what one rank trained on in one step. samples: [id, store, episode, step] of each."""

    rank: int
    attempt: int
    step: int
    world: int
    samples: list[list[int]]


class MetricsLog:
    """metrics.jsonl of a run: one line per report; lines after the step resumed from are dropped.

    An object store cannot append: there `publish`, called at every checkpoint, writes the file anew.
    """

    def __init__(self, output: str, resumed_step: int) -> None:
        self._path, self._is_remote = f"{output}/{METRICS}", "://" in output
        kept = [line for line in read_metrics(self._path) if line["step"] <= resumed_step] if resumed_step else []
        self._lines = [json.dumps(line) + "\n" for line in kept]
        if not self._is_remote:
            write_whole(self._path, "".join(self._lines))

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        line = json.dumps({"step": step, "time": time.time(), **metrics}) + "\n"
        if self._is_remote:
            self._lines.append(line)
            return
        with Path(self._path).open("a") as file:
            file.write(line)

    def publish(self) -> None:
        if self._is_remote:
            write_whole(self._path, "".join(self._lines))


def read_metrics(path: str | Path) -> list[Metrics]:
    """The lines of a metrics.jsonl, local or remote; a line cut by a crash is left out."""
    return list(whole_lines(str(path)))


class SampleLog:
    """samples/rank-00000.jsonl, ...: what this rank trained on, step by step, as evidence that nothing was repeated.

    Nothing is dropped: after a crash, the lines of a later `attempt` at a step follow those of the earlier one. Each
    line is written before its step counts as done. An object store cannot append: there `publish`, called before every
    checkpoint, writes the file anew, so that a crash loses the lines of steps that are trained again.
    """

    def __init__(self, output: str, context: WorkerContext) -> None:
        self._context = context
        self._path, self._is_remote = f"{output}/samples/rank-{context.rank:05d}.jsonl", "://" in output
        before = list(whole_lines(self._path))
        mine = max((line["attempt"] for line in before), default=0)
        self._attempt = max(context.gather(mine)) + 1
        self._rows: list[list[int]] = []
        self._lines = [json.dumps(line) + "\n" for line in before] if self._is_remote else []
        if not self._is_remote:
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            with Path(self._path).open("a+b") as file:
                _end_line(file)

    def add(self, batch: Mapping[str, torch.Tensor]) -> None:
        """The samples of one micro-batch, before it goes to the device."""
        columns = [batch[key].tolist() for key in ("sample_id", "store", "episode", "step") if key in batch]
        self._rows += [list(row) for row in zip(*columns, strict=True)]

    def end_step(self, step: int) -> None:
        entry = {"attempt": self._attempt, "step": step, "world": self._context.world_size, "samples": self._rows}
        line = json.dumps(entry) + "\n"
        self._rows = []
        if self._is_remote:
            self._lines.append(line)
            return
        with Path(self._path).open("a") as file:
            file.write(line)

    def publish(self) -> None:
        if self._is_remote:
            write_whole(self._path, "".join(self._lines))


def read_samples(output: str | Path) -> list[SampleLine]:
    """Every line of every rank's log, in a local output folder."""
    lines: list[SampleLine] = []
    for path in sorted(Path(output, "samples").glob("rank-*.jsonl")):
        rank = int(path.stem.removeprefix("rank-"))
        lines += [SampleLine(rank=rank, **line) for line in whole_lines(str(path))]
    return lines


def final_samples(output: str | Path) -> dict[int, list[list[int]]]:
    """By step, the sorted samples of the attempt that counts: the last one to train that step."""
    lines = read_samples(output)
    last = {line["step"]: 0 for line in lines}
    for line in lines:
        last[line["step"]] = max(last[line["step"]], line["attempt"])
    counting: dict[int, list[list[int]]] = {}
    for line in lines:
        if line["attempt"] == last[line["step"]]:
            counting.setdefault(line["step"], []).extend(line["samples"])
    return {step: sorted(samples) for step, samples in sorted(counting.items())}


def _end_line(file: BinaryIO) -> None:
    """Close a line that a crash has cut, so that the next one stands alone."""
    if file.seek(0, 2) and file.seek(-1, 2) >= 0 and file.read(1) != b"\n":
        file.write(b"\n")
