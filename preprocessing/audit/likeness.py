"""How alike two series of numbers are over the episodes of a store, one of them some steps later."""

from __future__ import annotations

import numpy as np

from preprocessing.audit.evidence import FEWEST_STEPS
from preprocessing.store.episode_store import EpisodeStore

LIKE = 0.5  # a correlation from here on is an answer; displacements of the sample and of Bridge reach 0.8 to 0.9
ABSOLUTE = 0.9  # correlation with the state itself from which a command is a place to go to
_LATENCY_S = 0.15  # a controller may answer this late, and always one step late


def lagged(pairs: list[tuple[np.ndarray, np.ndarray]], lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, D) of the first beside those of the second that are `lag` steps later, episode by episode."""
    first, second = [], []
    for command, response in pairs:
        start, stop = max(0, -lag), min(len(command), len(response) - lag)
        if stop > start:
            first.append(command[start:stop])
            second.append(response[start + lag : stop + lag])
    width = pairs[0][0].shape[1]
    return np.concatenate([np.zeros((0, width)), *first]), np.concatenate([np.zeros((0, width)), *second])


def correlation(first_ND: np.ndarray, second_ND: np.ndarray) -> float:
    """The correlation, averaged over the axes that vary; 0 if no axis varies or there are too few rows."""
    if len(first_ND) < FEWEST_STEPS:
        return 0.0
    deviation = [values - values.mean(axis=0) for values in (first_ND, second_ND)]
    norms = np.prod([np.linalg.norm(values, axis=0) for values in deviation], axis=0)
    varies = norms > 1e-9
    return float(((deviation[0] * deviation[1]).sum(axis=0)[varies] / norms[varies]).mean()) if varies.any() else 0.0


def allowed_lag(store: EpisodeStore) -> int:
    return max(1, int(_LATENCY_S * store.dataset.control_hz))
