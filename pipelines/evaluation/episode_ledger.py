"""Finished episodes of an evaluation, one per line, so that a killed evaluation continues where it was.

The file is named after everything that decides an episode, and deleted when the evaluation ends.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from pipelines.evaluation.closed_loop import Episode, EpisodeResult

Key = tuple[str, str, int, str]
"""Actor, task, seed, instruction."""


class EpisodeLedger:
    """Reads the file, and appends to it. The episode of a line that was cut off is acted again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._results: dict[Key, EpisodeResult] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                entry = json.loads(line)
                result = EpisodeResult(**entry["result"])
            except (ValueError, KeyError, TypeError):
                continue
            self._results[(entry["actor"], result.task, result.seed, result.instruction)] = result

    def __len__(self) -> int:
        return len(self._results)

    def result(self, actor: str, episode: Episode) -> EpisodeResult | None:
        return self._results.get((actor, episode.task, episode.seed, episode.instruction))

    def add(self, actor: str, result: EpisodeResult) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write("\n" * self._is_cut() + json.dumps({"actor": actor, "result": asdict(result)}) + "\n")
        self._results[(actor, result.task, result.seed, result.instruction)] = result

    def _is_cut(self) -> bool:
        """Whether the file ends in the middle of a line."""
        return self._path.stat().st_size > 0 and not self._path.read_bytes().endswith(b"\n")

    def delete(self) -> None:
        self._path.unlink(missing_ok=True)


def fingerprint(model: nn.Module, setting: Mapping[str, object]) -> str:
    """12 hexadecimal digits that stand for the weights of `model` and for everything in `setting`."""
    digest = hashlib.sha256(json.dumps(setting, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
