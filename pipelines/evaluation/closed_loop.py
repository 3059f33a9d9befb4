"""Episodes acted in simulators: a policy is told the task, sees frames and answers actions until the episode ends.

An episode ends with the simulator's success, with the policy's own "terminate", or at the step limit. An error in it is
a failure, kept with its sentence. What an episode comes to depends on its task and seed alone: neither on the number
of simulators nor on the episodes beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

from preprocessing.simulation.environment import EnvironmentConfig, Observation

Ending = Literal["success", "terminated", "step limit", "error"]


@dataclass(frozen=True, kw_only=True)
class Episode:
    """What is drawn before anything acts."""

    environment: EnvironmentConfig
    seed: int
    instruction: str
    """What the policy is told, which may be another task's instruction."""

    @property
    def task(self) -> str:
        return self.environment.task


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """What came of an episode."""

    task: str
    seed: int
    instruction: str
    ending: Ending
    steps: int
    """Actions done."""
    total_reward: float
    """The return."""
    error: str | None = None
    mean_action: Mapping[str, float] = field(default_factory=dict)
    """By dimension, in physical units; how far the policy moved on average."""
    largest_action: Mapping[str, float] = field(default_factory=dict)
    """By dimension: the largest absolute value."""

    @property
    def success(self) -> bool:
        return self.ending == "success"


class Actor(Protocol):
    """What decides, for one robot."""

    sees_frames: bool
    """Whether it looks at frames; if not, none need be drawn."""

    def begin(self, episode: Episode) -> None:
        """Forget what was seen before."""
        ...

    def act(self, observation: Observation) -> Mapping[str, float] | None:
        """Physical values by dimension name; None to declare the end of the episode."""
        ...


class SimulatorPool(Protocol):
    """Simulators, each with one episode at a time."""

    size: int

    def reset(self, simulator: int, episode: Episode) -> None: ...

    def step(self, simulator: int, values: Mapping[str, float]) -> None: ...

    def next(self) -> tuple[int, Observation | Exception]:
        """The number of a simulator that has answered, and its answer."""
        ...


def run_episodes(
    pool: SimulatorPool, new_actor: Callable[[], Actor], episodes: Sequence[Episode]
) -> Iterator[tuple[EpisodeResult, list[bytes]]]:
    """The result and the frames of every episode, in the order in which they end; no frames if its actor sees none."""
    actors = [new_actor() for _ in range(min(pool.size, len(episodes)))]
    draws = any(actor.sees_frames for actor in actors)
    waiting = deque(episodes if draws else map(_without_camera, episodes))
    running = {simulator: _begin(pool, simulator, actor, waiting.popleft()) for simulator, actor in enumerate(actors)}
    while running:
        simulator, answer = pool.next()
        acted = running[simulator]
        values = acted.advance(answer)
        if values is not None:
            pool.step(simulator, values)
            continue
        yield acted.result(), acted.frames
        del running[simulator]
        if waiting:
            running[simulator] = _begin(pool, simulator, acted.actor, waiting.popleft())


def _without_camera(episode: Episode) -> Episode:
    return replace(episode, environment=episode.environment.without_camera())


def _begin(pool: SimulatorPool, simulator: int, actor: Actor, episode: Episode) -> _RunningEpisode:
    actor.begin(episode)
    pool.reset(simulator, episode)
    return _RunningEpisode(actor=actor, episode=episode)


@dataclass(kw_only=True)
class _RunningEpisode:
    actor: Actor
    episode: Episode
    frames: list[bytes] = field(default_factory=list)
    actions: list[Mapping[str, float]] = field(default_factory=list)
    total_reward: float = 0.0
    ending: Ending | None = None
    error: str | None = None

    def advance(self, answer: Observation | Exception) -> Mapping[str, float] | None:
        """The next action; None once the episode has ended."""
        if isinstance(answer, Exception):
            return self._fail(answer)
        if answer.frame:
            self.frames.append(answer.frame)
        self.total_reward += answer.reward
        if answer.is_over:
            self.ending = "success" if answer.success else "step limit"
            return None
        try:
            values = self.actor.act(answer)
        except Exception as error:
            return self._fail(error)
        if values is None:
            self.ending = "terminated"
            return None
        self.actions.append(values)
        return values

    def _fail(self, error: Exception) -> None:
        self.ending, self.error = "error", f"{type(error).__name__}: {error}".splitlines()[0]

    def result(self) -> EpisodeResult:
        assert self.ending is not None
        names = list(self.actions[0]) if self.actions else []
        columns = {name: np.array([action[name] for action in self.actions]) for name in names}
        return EpisodeResult(
            task=self.episode.task,
            seed=self.episode.seed,
            instruction=self.episode.instruction,
            ending=self.ending,
            steps=len(self.actions),
            total_reward=self.total_reward,
            error=self.error,
            mean_action={name: float(column.mean()) for name, column in columns.items()},
            largest_action={name: float(np.abs(column).max()) for name, column in columns.items()},
        )
