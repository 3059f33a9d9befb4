"""What is wrong with a policy's answers, dimension by dimension: near misses, gripper events, ends, probabilities.

These find faults. They do not tell whether a robot succeeds (`rtp agreement` measures whether they rank checkpoints).

Axes: N scored steps, A action dimensions, E events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.evaluation.calibration import Calibration, calibrate
from pipelines.evaluation.predictions import Predictions
from rt_models.action_space import TERMINATE, ActionSpec

WITHIN = (1, 2, 4)
EVENT_TOLERANCE = 2  # steps


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well something that seldom happens is found. None where there was nothing to find or nothing was found."""

    recorded: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None

    @staticmethod
    def of(*, hits: int, recorded: int, predicted: int) -> Detection:
        return Detection(
            recorded=recorded,
            predicted=predicted,
            precision=hits / predicted if predicted else None,
            recall=hits / recorded if recorded else None,
            f1=2 * hits / (recorded + predicted) if recorded + predicted else None,
        )


@dataclass(frozen=True, kw_only=True)
class DimensionDiagnosis:
    """One dimension."""

    within_bins: Mapping[str, float]
    """Share of steps at most so many bins from the recorded one; of a class number only the right one counts."""
    calibration: Calibration | None
    """None for a model whose probabilities are not computed."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """By scored dimension, and what happens seldom."""

    dimensions: Mapping[str, DimensionDiagnosis]
    gripper_events: Detection | None
    """The gripper's turns from opening to closing and back, within two steps; None without a gripper."""
    terminate: Detection | None
    """Steps that declare the end of an episode; None where none does."""


def diagnose(predictions: Predictions, predicted_NA: np.ndarray, spec: ActionSpec, dims: np.ndarray) -> Diagnosis:
    """`predicted_NA` are the physical actions of `predictions`; `dims` are scored."""
    grippers = [dim for dim in dims if "gripper" in spec.names[dim] and not spec.dimensions[dim].discrete]
    ends = [dim for dim in dims if spec.names[dim] == "terminate_episode"]
    return Diagnosis(
        dimensions={spec.names[dim]: _dimension(predictions, spec, int(dim)) for dim in dims},
        gripper_events=_gripper_events(predictions, predicted_NA, grippers[0]) if grippers else None,
        terminate=_ends(predictions, ends[0]) if ends else None,
    )


def _dimension(predictions: Predictions, spec: ActionSpec, dim: int) -> DimensionDiagnosis:
    distance_N = np.abs(predictions.tokens_NA[:, dim] - predictions.target_tokens_NA[:, dim])
    if spec.dimensions[dim].discrete:
        distance_N = np.where(distance_N > 0, np.inf, 0)
    return DimensionDiagnosis(
        within_bins={str(k): float((distance_N <= k).mean()) for k in WITHIN},
        calibration=None
        if predictions.log_likelihood_NAJ is None or predictions.confidence_NAJ is None
        else calibrate(
            predictions.log_likelihood_NAJ[:, dim],
            predictions.confidence_NAJ[:, dim],
            distance_N == 0,
            predictions.episode_N,
        ),
    )


def _ends(predictions: Predictions, dim: int) -> Detection:
    recorded_N = predictions.target_tokens_NA[:, dim] == TERMINATE
    predicted_N = predictions.tokens_NA[:, dim] == TERMINATE
    hits = int((recorded_N & predicted_N).sum())
    return Detection.of(hits=hits, recorded=int(recorded_N.sum()), predicted=int(predicted_N.sum()))


def _gripper_events(predictions: Predictions, predicted_NA: np.ndarray, dim: int) -> Detection:
    recorded_N = predictions.physical_NA[:, dim]
    middle = (recorded_N.min() + recorded_N.max()) / 2
    hits = recorded = predicted = 0
    for episode in np.unique(predictions.episode_N):
        own = predictions.episode_N == episode
        theirs, ours = (_turns(values[own] > middle) for values in (recorded_N, predicted_NA[:, dim]))
        hits += matched(theirs, ours)
        recorded += len(theirs)
        predicted += len(ours)
    return Detection.of(hits=hits, recorded=recorded, predicted=predicted)


def _turns(closing_N: np.ndarray) -> list[tuple[int, bool]]:
    """(step, whether it closes) of every change."""
    return [(int(step), bool(closing_N[step])) for step in np.flatnonzero(np.diff(closing_N.astype(np.int8))) + 1]


def matched(recorded: list[tuple[int, bool]], predicted: list[tuple[int, bool]]) -> int:
    """How many recorded events have a predicted one of the same kind at most `EVENT_TOLERANCE` steps away, each taken
    once, in order of time."""
    free, hits = list(predicted), 0
    for step, closes in recorded:
        near = [event for event in free if event[1] == closes and abs(event[0] - step) <= EVENT_TOLERANCE]
        if near:
            free.remove(min(near))
            hits += 1
    return hits
