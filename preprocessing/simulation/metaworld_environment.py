"""Meta-World as an `Environment`: the scenes, camera and control rate of `rtp simulate`, moved by a policy.

An action is the displacement of the hand in metres over one control step, and the gripper, +1 closes. It is done in
equal parts by the simulator's steps, as `preprocessing/simulation/metaworld_rlds.py` records the expert's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from preprocessing.simulation.environment import ExpertEpisode, Measure, Observation
from preprocessing.simulation.metaworld_rlds import INSTRUCTIONS
from preprocessing.simulation.metaworld_rollout import SIMULATOR_HZ, Camera, Rollout, roll_out

HORIZON = 500  # simulator steps of an episode (`SawyerXYZEnv.max_path_length`, metaworld 3.1)
STATE_NAMES = ("state/x", "state/y", "state/z", "state/gripper")  # as in preprocessing/openx/metaworld_sample.py
MOVED_BY = ("world_vector_x", "world_vector_y", "world_vector_z", "gripper_closedness_action")


@dataclass(frozen=True, kw_only=True)
class MetaWorldConfig:
    """One task under one camera, or none."""

    task: str
    camera: Camera | None
    control_hz: int
    """Control steps per second; must divide the simulator's 80."""
    further_cameras: Mapping[str, Camera] = field(default_factory=dict)
    """By role, beside the main one."""

    def __post_init__(self) -> None:
        if self.control_hz < 1 or SIMULATOR_HZ % self.control_hz:
            raise ValueError(f"Meta-World's {SIMULATOR_HZ} Hz must be a multiple of the control rate {self.control_hz}")

    @property
    def instruction(self) -> str:
        return INSTRUCTIONS[self.task]

    @property
    def moved_by(self) -> tuple[str, ...]:
        return MOVED_BY

    @property
    def state_names(self) -> tuple[str, ...]:
        return STATE_NAMES

    @property
    def max_steps(self) -> int:
        return HORIZON // (SIMULATOR_HZ // self.control_hz)

    @property
    def measure(self) -> Measure:
        return "success"

    @property
    def has_expert(self) -> bool:
        return True

    def without_camera(self) -> MetaWorldConfig:
        return replace(self, camera=None, further_cameras={})

    def build(self) -> MetaWorldEnvironment:
        return MetaWorldEnvironment(self)


class MetaWorldEnvironment:
    """A simulator for each episode, as for each recorded one: an episode does not depend on those before it."""

    def __init__(self, config: MetaWorldConfig) -> None:
        self._config = config
        self._rollout = None

    @property
    def instruction(self) -> str:
        return self._config.instruction

    def reset(self, seed: int) -> Observation:
        self.close()
        self._rollout = Rollout(self._config.task, seed, self._config.camera, self._config.further_cameras)
        return self._observation()

    def step(self, values: Mapping[str, float]) -> Observation:
        missing = [name for name in MOVED_BY if name not in values]
        if missing:
            raise ValueError(f"Meta-World's arm moves by {', '.join(MOVED_BY)}: the action has no {missing[0]}")
        if self._rollout is None:
            raise ValueError("an episode begins with reset(seed)")
        num_steps = SIMULATOR_HZ // self._config.control_hz
        command = np.array([values[name] for name in MOVED_BY], np.float64)
        command[:3] /= num_steps * self._rollout.env.action_scale
        self._rollout.act(lambda _: command, num_steps)
        return self._observation()

    def expert_episode(self, seed: int) -> ExpertEpisode:
        recording = roll_out(self._config.task, seed=seed, control_hz=self._config.control_hz)
        if recording is None:
            return ExpertEpisode(success=False, steps=self._config.max_steps, total_reward=0.0)
        steps = len(recording.action_TA) - 2  # without the step that declares the end
        return ExpertEpisode(success=True, steps=steps, total_reward=1.0)

    def close(self) -> None:
        if self._rollout is not None:
            self._rollout.close()
            self._rollout = None

    def _observation(self) -> Observation:
        rollout = self._rollout
        assert rollout is not None
        is_last = len(rollout.action_TA) >= self._config.max_steps
        return Observation(
            frame=rollout.frames_T[-1] if rollout.frames_T else b"",
            further_frames={role: frames_T[-1] for role, frames_T in rollout.further_frames.items()},
            state_names=STATE_NAMES,
            state_S=rollout.state_TS[-1].astype(np.float32),
            object_place=rollout.object_place(),
            reward=float(rollout.success),
            success=rollout.success,
            is_over=rollout.success or is_last,
        )
