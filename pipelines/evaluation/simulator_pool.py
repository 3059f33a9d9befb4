"""Simulators in this process, or each in a process of its own under Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from pipelines.evaluation.closed_loop import Episode
from preprocessing.simulation.environment import Environment, EnvironmentConfig, ExpertEpisode, Observation


class Simulator:
    """Holds the environment of the last task, and makes another one when the task changes."""

    def __init__(self) -> None:
        self._config: EnvironmentConfig | None = None
        self._environment: Environment | None = None

    def reset(self, config: EnvironmentConfig, seed: int) -> Observation:
        if config != self._config or self._environment is None:
            self.close()
            self._environment, self._config = config.build(), config
        return self._environment.reset(seed)

    def step(self, values: Mapping[str, float]) -> Observation:
        assert self._environment is not None
        return self._environment.step(values)

    def expert_episode(self, config: EnvironmentConfig, seed: int) -> ExpertEpisode:
        return config.without_camera().build().expert_episode(seed)

    def close(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None


class LocalPool:
    """One simulator in this process: it answers when it is asked for."""

    size = 1

    def __init__(self) -> None:
        self._simulator = Simulator()
        self._answers: deque[Observation | Exception] = deque()

    def reset(self, simulator: int, episode: Episode) -> None:
        self._answers.append(_caught(lambda: self._simulator.reset(episode.environment, episode.seed)))

    def step(self, simulator: int, values: Mapping[str, float]) -> None:
        self._answers.append(_caught(lambda: self._simulator.step(values)))

    def next(self) -> tuple[int, Observation | Exception]:
        return 0, self._answers.popleft()

    def expert_episodes(self, episodes: list[Episode]) -> list[ExpertEpisode]:
        return [self._simulator.expert_episode(episode.environment, episode.seed) for episode in episodes]

    def close(self) -> None:
        self._simulator.close()


def _caught(answer: Callable[[], Observation]) -> Observation | Exception:
    try:
        return answer()
    except (ImportError, OSError):  # nothing simulates or draws here: no episode could
        raise
    except Exception as error:
        return error


class RayPool:
    """`size` simulators, each a Ray actor on one CPU. One that dies fails its episode and is replaced."""

    def __init__(self, size: int) -> None:
        import ray

        self.size = size
        self._actor_class = ray.remote(num_cpus=1, max_restarts=0)(Simulator)
        self._simulators: list[Any] = [self._actor_class.remote() for _ in range(size)]
        self._pending: dict[Any, int] = {}

    def reset(self, simulator: int, episode: Episode) -> None:
        answer = self._simulators[simulator].reset.remote(episode.environment, episode.seed)
        self._pending[answer] = simulator

    def step(self, simulator: int, values: Mapping[str, float]) -> None:
        self._pending[self._simulators[simulator].step.remote(dict(values))] = simulator

    def next(self) -> tuple[int, Observation | Exception]:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        ready, _ = ray.wait(list(self._pending), num_returns=1)
        simulator = self._pending.pop(ready[0])
        try:
            return simulator, ray.get(ready[0])
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ImportError | OSError):
                raise cause from error
            return simulator, cause if isinstance(cause, Exception) else error
        except RayActorError as error:
            self._simulators[simulator] = self._actor_class.remote()
            return simulator, ChildProcessError(f"the simulator's process died: {str(error).splitlines()[0]}")

    def expert_episodes(self, episodes: list[Episode]) -> list[ExpertEpisode]:
        import ray

        pending = [
            self._simulators[place % self.size].expert_episode.remote(episode.environment, episode.seed)
            for place, episode in enumerate(episodes)
        ]
        return ray.get(pending)

    def close(self) -> None:
        import ray

        for simulator in self._simulators:
            with suppress(Exception):
                ray.kill(simulator)
