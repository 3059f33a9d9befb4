"""How a policy is tried in a simulator: the settings of `rtp evaluate --env`. Imports no torch and no simulator."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

View = Literal["side", "front", "top"]
Baseline = Literal["random", "mean_action", "copy", "replay", "expert"]
BASELINES: tuple[Baseline, ...] = ("random", "mean_action", "replay", "expert")


@dataclass(frozen=True, kw_only=True)
class ShownFrames:
    """How Meta-World's frames are drawn; `remarks` say in what they differ from the training data's."""

    view: str
    jpeg_quality: int
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ClosedLoopConfig:
    """What is simulated, and beside what the policy is shown."""

    env: str | None = None
    """Simulator and tasks that the policy acts in, such as metaworld:faucet-open,door-lock, metaworld:all or
    dmc:walker-walk. Meta-World's are measured by success, dm_control's by return."""
    against: str | None = None
    """Another model, acting under the same seeds: which is better, by a paired test."""
    dataset: str | None = None
    """Dataset in whose units and scale the policy acts, where it was trained on several."""
    baselines: tuple[Baseline, ...] = BASELINES
    """Shown beside the policy: random actions, the mean action, copy (a random action, then always the one before), one
    demonstration replayed blindly, and the scripted expert where there is one, which is the upper bound."""
    swap_instructions: bool = False
    """Also act with the instruction of another of the tasks."""
    shuffle_embeddings: bool = False
    """Also act with the numbers of the instruction's embedding in another order, as no instruction has them."""
    blank_images: bool = False
    """Also act with black frames."""
    workers: int = 0
    """Processes that simulate, under Ray; 0 simulates in this process. Results do not depend on it."""
    video: Path | None = None
    """Folder for an MP4 of every episode of the policy."""
    view: View | None = None
    """Where Meta-World's camera stands; default: as in the training data, which the model's contract says."""
    jpeg_quality: int | None = None
    """Quality of Meta-World's frames that the policy sees, 1 to 100; default: as in the training data."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"--workers must be 0 or more, got {self.workers}")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"--jpeg-quality must be from 1 to 100, got {self.jpeg_quality}")
        if self.video is not None and re.match(r"\w+:/", str(self.video)):
            raise ValueError(f"--video {self.video} is an address: give a local folder, and copy it there afterwards")
        if self.env is None:
            return
        simulator, colon, tasks = self.env.partition(":")
        if not (simulator and colon and tasks):
            raise ValueError(f"--env names a simulator and tasks, such as metaworld:faucet-open, got {self.env!r}")
        if simulator == "dmc":
            self._require_metaworlds_unset()

    def _require_metaworlds_unset(self) -> None:
        for name, default in (("view", None), ("jpeg_quality", None), ("swap_instructions", False)):
            if getattr(self, name) != default:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} belongs to Meta-World: leave it out with --env {self.env}")
