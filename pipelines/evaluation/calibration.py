"""Whether a policy's probabilities mean what they say: negative log-likelihood, calibration error, temperature.

Confidence is the largest probability of a dimension's bins. Calibration error: confidences in 15 groups of equal size,
the mean gap between confidence and accuracy of a group (Guo et al., arXiv 1706.04599, with groups of equal mass). A
temperature divides the logits; it is fitted by likelihood on half of the episodes and judged on the other half. With
256 bins a neighbouring bin counts as wrong though it is harmless: read the error beside `within_bins`.

Axes: N scored steps, A action dimensions, J temperatures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.families.base import TEMPERATURES

_ONE = TEMPERATURES.index(1.0)
_GROUPS = 15


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """One dimension, as the model is, then at its temperature."""

    negative_log_likelihood: float
    """Of the recorded bin, in nats."""
    calibration_error: float
    temperature: float
    """Above 1 the model is too sure. Fitted on all episodes."""
    negative_log_likelihood_at_temperature: float
    """Each half of the episodes at the temperature that the other half asks for."""
    calibration_error_at_temperature: float


def calibrate(
    log_likelihood_NJ: np.ndarray, confidence_NJ: np.ndarray, right_N: np.ndarray, episode_N: np.ndarray
) -> Calibration:
    """From the recorded bin's log-probability and the largest probability at each of `TEMPERATURES`."""
    half_N = np.unique(episode_N, return_inverse=True)[1] % 2 == 0
    chosen_N = np.zeros(len(right_N), np.int64)
    for half in (half_N, ~half_N):
        fitted_on = log_likelihood_NJ[~half] if (~half).any() else log_likelihood_NJ
        chosen_N[half] = fitted_on.mean(axis=0).argmax()
    rows = np.arange(len(right_N))
    return Calibration(
        negative_log_likelihood=float(-log_likelihood_NJ[:, _ONE].mean()),
        calibration_error=calibration_error(confidence_NJ[:, _ONE], right_N),
        temperature=TEMPERATURES[int(log_likelihood_NJ.mean(axis=0).argmax())],
        negative_log_likelihood_at_temperature=float(-log_likelihood_NJ[rows, chosen_N].mean()),
        calibration_error_at_temperature=calibration_error(confidence_NJ[rows, chosen_N], right_N),
    )


def calibration_error(confidence_N: np.ndarray, right_N: np.ndarray) -> float:
    """The mean over steps of |confidence - accuracy| of their group; 0 is perfect, 1 the most."""
    order = np.argsort(confidence_N, kind="stable")
    groups = np.array_split(order, min(_GROUPS, len(order)))
    gaps = [abs(confidence_N[group].mean() - right_N[group].mean()) * len(group) for group in groups]
    return float(sum(gaps) / len(order))
