"""A simulator that needs nothing: processes of Ray's that only simulate import no torch for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from preprocessing.simulation.environment import ExpertEpisode, Measure, Observation


@dataclass(frozen=True, kw_only=True)
class LineConfig:
    """A point on a line that must get beyond 1; its start depends on the seed. At 13 the simulator fails."""

    task: str = "line"
    instruction: str = "go right"
    max_steps: int = 8
    moved_by: tuple[str, ...] = ("x",)
    state_names: tuple[str, ...] = ("state/place",)
    draws: bool = True
    measure: Measure = "success"
    has_expert: bool = True

    def without_camera(self) -> LineConfig:
        return replace(self, draws=False)

    def build(self) -> LineEnvironment:
        return LineEnvironment(self)


class LineEnvironment:
    def __init__(self, config: LineConfig) -> None:
        self._config = config
        self.instruction = config.instruction

    def reset(self, seed: int) -> Observation:
        self._seed, self._steps = seed, 0
        self._place = float(np.random.default_rng(seed).uniform(-1, 0.5))
        return self._observation()

    def step(self, values: Mapping[str, float]) -> Observation:
        if self._seed == 13:
            raise RuntimeError("the simulation diverged\nat a joint")
        if self._seed == 99:
            os.kill(os.getpid(), signal.SIGKILL)
        self._steps += 1
        self._place += values["x"]
        return self._observation()

    def _observation(self) -> Observation:
        success = self._place > 1
        return Observation(
            frame=b"a picture" if self._config.draws else b"",
            state_S=np.array([self._place], np.float32),
            reward=self._place,
            success=success,
            is_over=success or self._steps >= self._config.max_steps,
        )

    def expert_episode(self, seed: int) -> ExpertEpisode:
        return ExpertEpisode(success=False, steps=8, total_reward=0.5)

    def close(self) -> None:
        pass
