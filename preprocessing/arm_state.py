"""The arm's recorded state: which proprioceptive value is the pose that an action dimension changes, and its motion."""

from __future__ import annotations

import numpy as np

from preprocessing.dataset_spec import GROUPS
from preprocessing.store.episode_store import EpisodeStore

_EULER = ("roll", "pitch", "yaw")  # other rotations do not add up step by step


def arm_columns(store: EpisodeStore) -> dict[int, int]:
    """Arm dimensions that the dataset has -> the proprioceptive column of the pose that each changes.

    In RT-1's space they go by name and unit; in another the spec declares them, of every dimension.
    """
    mask = store.dataset.action_mask
    if not store.contract.action.space().is_rt1:
        return _declared(store)
    columns = {}
    for group, names, unit in (("world_vector", ("x", "y", "z"), "m"), ("rotation_delta", _EULER, "rad")):
        for dimension, name in enumerate(names, start=GROUPS[group].start):
            column = _proprio_column(store, name, unit)
            if mask[dimension] and column is not None:
                columns[dimension] = column
    return columns


def _declared(store: EpisodeStore) -> dict[int, int]:
    names = store.manifest.proprio.names
    return {place: names.index(m.state) for place, m in enumerate(store.dataset.meanings) if m.state}


def displacements(state_TD: np.ndarray, angle_D: np.ndarray) -> np.ndarray:
    """(T - 1, D): what each state changed by until the next; an angle that passes +-pi goes the short way round."""
    steps = np.diff(state_TD, axis=0)
    return np.where(angle_D, (steps + np.pi) % (2 * np.pi) - np.pi, steps)


def _proprio_column(store: EpisodeStore, name: str, unit: str) -> int | None:
    """The first proprioceptive column of this name and unit."""
    proprio = store.manifest.proprio
    for column, (path, its_unit) in enumerate(zip(proprio.names, proprio.units, strict=True)):
        if path.rpartition("/")[2] == name and its_unit == unit:
            return column
    return None
