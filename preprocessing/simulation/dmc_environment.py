"""dm_control's suite (arXiv 1801.00690) as an `Environment`, with V-D4RL's pictures and rate (arXiv 2206.04779).

An action is the effort of each actuator, -1 to 1 over its range, held for the control steps between two decisions (two
in V-D4RL), whose rewards are added. The picture is that of camera 0, as PNG: V-D4RL's are stored without loss. Nothing
says "success": an episode of 1,000 control steps is worth its return, at most 1,000.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from preprocessing.simulation.environment import ExpertEpisode, Measure, Observation
from preprocessing.simulation.gl_backend import choose_gl_backend, require_gl_backend
from preprocessing.store.images import encode_png

# Per metre, and per metre a second: returns of 840 to 914 under three seeds.
SPRING, DAMPER = 10.0, 1.0
Controller = Callable[[Any], np.ndarray]
"""From dm_control's physics to an action in -1 to 1."""


def to_the_target(physics: Any) -> np.ndarray:
    """point_mass-easy: u = -10 x - 1 v in each direction, cut off at 1; the target lies at 0."""
    return np.clip(-SPRING * physics.position() - DAMPER * physics.velocity(), -1.0, 1.0)


CONTROLLERS: Mapping[str, Controller] = {"point_mass-easy": to_the_target}
"""The tasks that have an expert here: dm_control ships none, and those of V-D4RL were trained."""


@dataclass(frozen=True, kw_only=True)
class DmcConfig:
    """One task of the suite. `dmc_config` fills in what dm_control says of it."""

    task: str
    """Domain and task, such as walker-walk."""
    height: int
    """Of the picture, in pixels."""
    width: int
    num_actuators: int
    action_repeat: int
    """Control steps that an action is held for."""
    max_steps: int
    """Decisions of an episode."""
    state_names: tuple[str, ...] = ()
    """As the reader of V-D4RL calls what the task observes: position/position_0 and so on."""
    draws: bool = True

    @property
    def instruction(self) -> str:
        """As the reader of V-D4RL has it."""
        return self.task.replace("-", " ").replace("_", " ")

    @property
    def moved_by(self) -> tuple[str, ...]:
        return tuple(f"actuator_{number}" for number in range(self.num_actuators))

    @property
    def measure(self) -> Measure:
        return "return"

    @property
    def has_expert(self) -> bool:
        return self.task in CONTROLLERS

    def without_camera(self) -> DmcConfig:
        return replace(self, draws=False)

    def build(self) -> DmcEnvironment:
        if self.draws:
            require_gl_backend()
        load_suite()
        return DmcEnvironment(self)


def dmc_config(task: str, *, height: int, width: int, control_hz: float | None = None) -> DmcConfig:
    """The config of DOMAIN-TASK at a rate in decisions a second; without one an action is held for two control steps.

    Raises ValueError for an unknown task, and for a rate that is no whole part of the task's own.
    """
    suite = load_suite()
    known = {"-".join(names): names for names in suite.ALL_TASKS}
    if task not in known:
        close = difflib.get_close_matches(task, known, n=1)
        nearest = f", such as {close[0]}" if close else ""
        raise ValueError(f"dm_control has no task {task!r}: give DOMAIN-TASK{nearest}")
    loaded = suite.load(*known[task])
    own_hz = 1 / loaded.control_timestep()
    repeat = 2 if control_hz is None else round(own_hz / control_hz)
    if repeat < 1 or not math.isclose(own_hz / repeat, control_hz or own_hz / 2, rel_tol=1e-4):
        steps = f"{task} takes {own_hz:g} control steps a second"
        raise ValueError(f"{steps}, which is no whole multiple of the policy's {control_hz:g}")
    return DmcConfig(
        task=task,
        height=height,
        width=width,
        num_actuators=loaded.action_spec().shape[0],
        action_repeat=repeat,
        max_steps=math.ceil(round(loaded._step_limit, 6) / repeat),
        state_names=tuple(
            f"{name}/{name}_{number}"
            for name, observed in loaded.observation_spec().items()
            for number in range(math.prod(observed.shape))
        ),
    )


class DmcEnvironment:
    """A simulator for each episode: an episode does not depend on those before it."""

    def __init__(self, config: DmcConfig) -> None:
        self._config = config
        self.simulator: Any = None
        """dm_control's own environment, of the present episode."""
        self.seen: Any = None
        """What it last answered: its time step."""
        self._renderer: Any = None

    @property
    def instruction(self) -> str:
        return self._config.instruction

    def reset(self, seed: int) -> Observation:
        self.close()
        self.simulator = load_suite().load(*self._config.task.split("-"), task_kwargs={"random": seed})
        self.seen = self.simulator.reset()
        return self._observation(0.0)

    def step(self, values: Mapping[str, float]) -> Observation:
        moved_by = self._config.moved_by
        missing = [name for name in moved_by if name not in values]
        if missing:
            raise ValueError(f"{self._config.task} moves by {', '.join(moved_by)}: the action has no {missing[0]}")
        return self._observation(self.act(np.array([values[name] for name in moved_by], np.float64)))

    def act(self, action_A: np.ndarray) -> float:
        """Hold an action in -1 to 1 until the next decision: the sum of its rewards. Draws nothing."""
        if self.simulator is None or self.seen.last():
            raise ValueError("an episode begins with reset(seed)")
        spec, reward = self.simulator.action_spec(), 0.0
        effort_A = spec.minimum + (np.clip(action_A, -1.0, 1.0) + 1) / 2 * (spec.maximum - spec.minimum)
        for _ in range(self._config.action_repeat):
            self.seen = self.simulator.step(effort_A)
            reward += float(self.seen.reward)
            if self.seen.last():
                break
        return reward

    def expert_episode(self, seed: int) -> ExpertEpisode:
        if not self._config.has_expert:
            known = ", ".join(CONTROLLERS)
            raise ValueError(f"dm_control ships no expert for {self._config.task}: there is one for {known}")
        control, total, steps = CONTROLLERS[self._config.task], 0.0, 0
        with closing(DmcEnvironment(self._config.without_camera())) as environment:
            environment.reset(seed)
            while not environment.seen.last():
                total += environment.act(control(environment.simulator.physics))
                steps += 1
        return ExpertEpisode(success=False, steps=steps, total_reward=total)

    def picture(self) -> np.ndarray:
        """uint8 (H, W, 3): what camera 0 sees now; pixel for pixel what dm_control's own renderer draws."""
        import mujoco

        physics = self.simulator.physics
        if self._renderer is None:
            self._renderer = mujoco.Renderer(physics.model.ptr, self._config.height, self._config.width)
        self._renderer.update_scene(physics.data.ptr, camera=0)
        return self._renderer.render()

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self.simulator is not None:
            self.simulator.close()
            self.simulator = None

    def _observation(self, reward: float) -> Observation:
        values = [np.asarray(value, np.float32).reshape(-1) for value in self.seen.observation.values()]
        return Observation(
            frame=encode_png(self.picture()) if self._config.draws else b"",
            state_S=np.concatenate(values),
            state_names=self._config.state_names,
            reward=reward,
            is_over=self.seen.last(),
        )


def load_suite() -> Any:
    """dm_control's suite, set to draw without a screen. Raises ImportError with the remedy if it does not load."""
    choose_gl_backend()
    try:
        from dm_control import suite
    except ImportError as error:
        raise ImportError(
            f"this task needs dm_control, which does not load here ({error}): pip install 'rt-pipelines[sim]' under "
            "Python 3.11 or 3.12 (a part of dm_control, labmaze, has no package for 3.13)"
        ) from error
    return suite
