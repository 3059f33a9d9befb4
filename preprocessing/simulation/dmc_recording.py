"""Controllers at work in dm_control: episodes in V-D4RL's layout.

Row 0 holds the first picture, an action of zeros and no reward; row t + 1 the picture, the action and the summed reward
of decision t. With noise the recorded action is the controller's own and another is done: an imitator then sees how to
come back (DART, arXiv 1703.09327).
"""

from __future__ import annotations

import functools
import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.simulation.dmc_environment import CONTROLLERS, DmcConfig, DmcEnvironment
from preprocessing.simulation.gl_backend import gl_backend
from preprocessing.vd4rl.rows import EpisodeFrames
from preprocessing.vd4rl.writer import write_episodes

_EPISODES_A_FILE = 20  # of 501 rows of 84 pixels: 212 MB before compression


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """Episodes of one task."""

    environment: DmcConfig
    episodes: int
    first_seed: int
    decisions: int
    """Of each episode; the environment's `max_steps` are a whole one."""
    noise: float = 0.0
    """Standard deviation of what is added to each action that is done, and not to what is recorded."""

    def __post_init__(self) -> None:
        if not self.environment.has_expert:
            known = ", ".join(f"dmc:{task}" for task in CONTROLLERS)
            raise ValueError(f"nothing here solves {self.environment.task}: there are controllers for {known}")
        if not 1 <= self.decisions <= self.environment.max_steps:
            raise ValueError(
                f"--decisions must be from 1 to {self.environment.max_steps} in {self.environment.task}, got "
                f"{self.decisions}"
            )

    @property
    def folder(self) -> str:
        """Below the output folder, as V-D4RL's are called: the reader takes the task from it."""
        return f"{self.environment.task.replace('-', '_')}/expert/{self.environment.height}px"


def record(demonstrations: Demonstrations, seed: int) -> EpisodeFrames:
    """The episode of `seed`."""
    config, noise = demonstrations.environment, demonstrations.noise
    control, random = CONTROLLERS[config.task], np.random.default_rng([seed, *config.task.encode()])
    with closing(config.build()) as environment:
        environment.reset(seed)
        frames, states = [environment.picture()], [_state(environment)]
        actions, rewards, discounts = [np.zeros(config.num_actuators)], [0.0], [1.0]
        while len(frames) <= demonstrations.decisions and not environment.seen.last():
            action_A = control(environment.simulator.physics)
            pushed_A = random.normal(scale=noise, size=action_A.shape) if noise else 0.0
            rewards.append(environment.act(action_A + pushed_A))
            actions.append(action_A)
            frames.append(environment.picture())
            states.append(_state(environment))
            discounts.append(float(environment.seen.discount))
    return EpisodeFrames(
        image_NHWC=np.stack(frames),
        action_NA=np.array(actions, np.float32),
        reward_N=np.array(rewards, np.float32),
        discount_N=np.array(discounts, np.float32),
        state={name: np.stack([state[name] for state in states]) for name in states[0]},
    )


def _state(environment: DmcEnvironment) -> dict[str, np.ndarray]:
    return {name: np.atleast_1d(np.asarray(value, np.float32)) for name, value in environment.seen.observation.items()}


def record_dataset(out: Path, demonstrations: Demonstrations, *, workers: int = 0) -> Iterator[float]:
    """Write the folder `out`/`demonstrations.folder` while its returns are taken; it appears when it is whole.

    Raises FileExistsError if it exists. The dataset does not depend on `workers`, the processes that simulate.
    """
    folder = out / demonstrations.folder
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it or write somewhere else")
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    name = "_".join(demonstrations.folder.split("/")[:2])
    kept: list[EpisodeFrames] = []
    for number, episode in enumerate(_episodes(demonstrations, workers), 1):
        kept.append(episode)
        if len(kept) == _EPISODES_A_FILE or number == demonstrations.episodes:
            write_episodes(partial, name, kept, first=number - len(kept))
            kept = []
        yield float(episode.reward_N.sum())
    partial.replace(folder)


def _episodes(demonstrations: Demonstrations, workers: int) -> Iterator[EpisodeFrames]:
    seeds = range(demonstrations.first_seed, demonstrations.first_seed + demonstrations.episodes)
    one = functools.partial(record, demonstrations)
    if workers == 0:
        yield from map(one, seeds)
        return
    gl_backend()  # MUJOCO_GL is tried once here
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(one, seeds)
