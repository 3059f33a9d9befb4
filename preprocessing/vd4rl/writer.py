"""Episodes as files in V-D4RL's two layouts, as `rows.py` reads them: row t holds what led to the frame at t.

84 pixels: one HDF5 file of many episodes, frames channels first. 64 pixels: one .npz file an episode, with the state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from preprocessing.vd4rl.rows import FIRST, LAST, MID, EpisodeFrames


def write_episodes(folder: Path, name: str, episodes: Sequence[EpisodeFrames], *, first: int = 0) -> None:
    """Add a file of the layout for these frames' size to `folder`, or of 64 pixels a file for each episode.

    `name` is the task and policy, as in walker_walk_expert; the first episode's number is `first`. Raises ValueError
    for frames of another size.
    """
    side = episodes[0].image_NHWC.shape[1:3]
    if side == (84, 84):
        with _whole(folder / f"{first}_{name}.hdf5") as file:
            _write_hdf5(file, episodes)
    elif side == (64, 64):
        for number, episode in enumerate(episodes, first):
            with _whole(folder / f"{number:06d}-{name}-{len(episode.action_NA)}.npz") as file:
                np.savez_compressed(file, allow_pickle=False, **_npz_arrays(episode))
    else:
        raise ValueError(f"V-D4RL has frames of 84x84 pixels in HDF5 and of 64x64 in .npz, not of {side[0]}x{side[1]}")


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w+b") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_hdf5(file: IO[bytes], episodes: Sequence[EpisodeFrames]) -> None:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("V-D4RL's HDF5 files need h5py: pip install 'rt-pipelines[vd4rl]'") from error
    columns = {
        "observation": [episode.image_NHWC.transpose(0, 3, 1, 2) for episode in episodes],
        "action": [episode.action_NA for episode in episodes],
        "reward": [episode.reward_N for episode in episodes],
        "discount": [episode.discount_N for episode in episodes],
        "step_type": [_step_types(len(episode.action_NA)) for episode in episodes],
    }
    with h5py.File(file, "w") as data:
        for column, parts in columns.items():
            values = np.concatenate(parts)
            data.create_dataset(column, data=values, compression="gzip" if column == "observation" else None)


def _npz_arrays(episode: EpisodeFrames) -> dict[str, np.ndarray]:
    step_type_N = _step_types(len(episode.action_NA))
    return {
        "image": episode.image_NHWC,
        "action": episode.action_NA,
        "reward": episode.reward_N,
        "discount": episode.discount_N,
        "is_first": step_type_N == FIRST,
        "is_last": step_type_N == LAST,
        "is_terminal": episode.discount_N == 0,
        **episode.state,
    }


def _step_types(count: int) -> np.ndarray:
    step_type_N = np.full(count, MID, np.int64)
    step_type_N[0], step_type_N[-1] = FIRST, LAST
    return step_type_N
