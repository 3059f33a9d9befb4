"""V-D4RL folders in both layouts, written as dm_env records them: row t holds the action that led to frame t.

Every frame shows, in the levels of its pixels, its own number and the action that led to it: a policy that copies that
action out of the picture is found out by any test that gives it row t's action to imitate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

HDF5, NPZ = "84px", "64px"
SIDES = {HDF5: 84, NPZ: 64}


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """N rows: `action_NA` with zeros in row 0, `reward_N` with 0 there, the frames' numbers."""

    action_NA: np.ndarray
    reward_N: np.ndarray
    number_N: np.ndarray


def recorded(seed: int, steps: int, *, size: int = 6) -> Recorded:
    """An episode of `steps` decisions: N is one more. A perfect one would bring 2 a decision."""
    rng = np.random.default_rng(seed)
    action = np.concatenate([np.zeros((1, size)), rng.uniform(-1, 1, (steps, size))]).astype(np.float32)
    reward = np.concatenate([[0], rng.uniform(0, 2, steps)]).astype(np.float32)
    return Recorded(action_NA=action, reward_N=reward, number_N=np.arange(steps + 1))


def drawn(episode: Recorded, side: int) -> np.ndarray:
    """uint8 (N, side, side, 3): red is the frame's number, green the first value of the action that led to it."""
    frames = np.zeros((len(episode.number_N), side, side, 3), np.uint8)
    frames[..., 0] = episode.number_N[:, None, None]
    frames[..., 1] = copied_from(episode.action_NA[:, 0])[:, None, None]
    return frames


def copied_from(action_N: np.ndarray) -> np.ndarray:
    """The level that shows an action."""
    return np.round((action_N + 1) * 127).astype(np.uint8)


def write_hdf5(folder: Path, files: Sequence[Sequence[Recorded]], *, kind: str = "int64") -> Path:
    """One HDF5 file for each list of episodes; `kind` is the dtype of the step types."""
    folder.mkdir(parents=True)
    for number, episodes in enumerate(files):
        kinds = [np.array([0, *[1] * (len(one.number_N) - 2), 2]) for one in episodes]
        with h5py.File(folder / f"{number}_walker_walk_expert.hdf5", "w") as data:
            data["observation"] = np.concatenate([drawn(one, 84).transpose(0, 3, 1, 2) for one in episodes])
            data["action"] = np.concatenate([one.action_NA for one in episodes])
            data["reward"] = np.concatenate([one.reward_N for one in episodes])
            data["discount"] = np.concatenate([np.ones(len(one.number_N), np.float32) for one in episodes])
            data["step_type"] = np.concatenate(kinds).astype(kind)
    return folder


def write_npz(folder: Path, episodes: Sequence[Recorded]) -> Path:
    """One .npz file an episode, with the walker's state."""
    folder.mkdir(parents=True)
    for number, one in enumerate(episodes):
        count = len(one.number_N)
        np.savez(
            folder / f"20220101T0000{number:02d}-uuid-{count}.npz",
            image=drawn(one, 64),
            action=one.action_NA,
            reward=one.reward_N,
            discount=np.ones(count, np.float32),
            is_first=one.number_N == 0,
            is_last=one.number_N == count - 1,
            is_terminal=np.zeros(count, bool),
            height=one.number_N.astype(np.float32),
            velocity=np.repeat(one.number_N[:, None], 9, axis=1).astype(np.float32),
        )
    return folder


def write(folder: Path, layout: str, episodes: Sequence[Recorded]) -> Path:
    return write_hdf5(folder, [episodes]) if layout == HDF5 else write_npz(folder, episodes)
