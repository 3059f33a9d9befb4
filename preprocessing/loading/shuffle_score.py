"""How well a sequence of samples is shuffled, measured: how far apart the samples of one episode land."""

from __future__ import annotations

import numpy as np


def shuffle_score(episode_NE: np.ndarray) -> float | None:
    """Median distance between successive samples of one episode, over that of a full shuffle of the same samples.

    `episode_NE` int (N, E) names the episode of each sample, in the order they came. 1 is as good as a full shuffle,
    near 0 is no shuffle at all. None if no episode comes twice.
    """
    _, episode_N = np.unique(episode_NE, axis=0, return_inverse=True)
    distances = _distances(episode_N.ravel())
    shuffled = _distances(np.random.default_rng(0).permutation(episode_N.ravel()))
    return float(np.median(distances) / np.median(shuffled)) if len(distances) and len(shuffled) else None


def _distances(episode_N: np.ndarray) -> np.ndarray:
    order = np.argsort(episode_N, kind="stable")
    same = episode_N[order][1:] == episode_N[order][:-1]
    return np.diff(order)[same]
