"""What a simulator must answer so that a policy can act in it: reset by seed, a step, a frame, an instruction, success.

A simulator is one file with a config class beside this one. The rules are the same for all of them:

- success is the simulator's own signal at any of its steps; an episode ends with it. A simulator without such a signal
  is measured by return, the sum of an episode's rewards
- seeds from `FIRST_EVALUATION_SEED` up are for evaluation, seeds below it for demonstrations
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

FIRST_EVALUATION_SEED = 2_000_000

Measure = Literal["success", "return"]
"""What an episode is worth."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What there is after a step. S numbers of state."""

    frame: bytes
    """The camera's picture, encoded as demonstrations store it; empty without a camera."""
    state_S: np.ndarray
    """float32, in the order and units of the recorded `observation/state`."""
    reward: float = 0.0
    """Of this step alone."""
    further_frames: Mapping[str, bytes] = field(default_factory=dict)
    """By role the pictures of the cameras beside the main one, likewise."""
    state_names: tuple[str, ...] = ()
    """What demonstrations call the values of `state_S`, as "state/x"."""
    object_place: tuple[float, float] | None = None
    """Where the task's object is in `frame`, as fractions (x, y) from its upper left corner, at the border where it is
    out of view; None where the simulator does not say."""
    success: bool = False
    """Whether the task was solved at this step or before."""
    is_over: bool = False
    """Whether no step may follow: success, or the step limit."""


def state_of(observation: Observation) -> dict[str, float]:
    """The state by name; empty where its values have no names."""
    names = observation.state_names
    return dict(zip(names, observation.state_S.tolist(), strict=True)) if names else {}


@dataclass(frozen=True, kw_only=True)
class ExpertEpisode:
    """What the simulator's own expert makes of an episode."""

    success: bool
    steps: int
    """Control steps until it succeeds or the episode ends."""
    total_reward: float


class Environment(Protocol):
    """One simulated robot with one task."""

    @property
    def instruction(self) -> str: ...

    def reset(self, seed: int) -> Observation:
        """Begin the episode that `seed` draws."""
        ...

    def step(self, values: Mapping[str, float]) -> Observation:
        """Do an action for one control step: physical values by dimension name, as a policy answers them.

        Raises ValueError if the action lacks a dimension that the robot moves by.
        """
        ...

    def expert_episode(self, seed: int) -> ExpertEpisode:
        """The expert in the episode that `seed` draws. Raises ValueError if there is no expert."""
        ...

    def close(self) -> None: ...


class EnvironmentConfig(Protocol):
    """What is sent to the process that simulates: a dataclass. `task` is the name in the simulator."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def task(self) -> str: ...
    @property
    def instruction(self) -> str: ...
    @property
    def moved_by(self) -> tuple[str, ...]:
        """The dimensions that an action must have."""
        ...

    @property
    def state_names(self) -> tuple[str, ...]:
        """What demonstrations call the values of a state."""
        ...

    @property
    def max_steps(self) -> int:
        """Control steps of an episode at most."""
        ...

    @property
    def measure(self) -> Measure: ...
    @property
    def has_expert(self) -> bool:
        """Whether the simulator has an expert for this task."""
        ...

    def without_camera(self) -> EnvironmentConfig:
        """The same episodes with no pictures of them, which take most of the time."""
        ...

    def build(self) -> Environment:
        """Raises ImportError or OSError with the remedy if nothing simulates or draws here."""
        ...
