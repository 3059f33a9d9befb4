"""Evaluation reports with made-up scores."""

from __future__ import annotations

from typing import Any

from pipelines.evaluation.report import EpisodeReport, Labels, QuestionScores, ShuffledAnswers, WebReport
from pipelines.evaluation.statistics import Interval


def interval(mean: float, low: float | None = None, high: float | None = None) -> Interval:
    return Interval(mean=mean, low=mean if low is None else low, high=mean if high is None else high)


def labels(**changes: Any) -> Labels:
    fields: dict[str, Any] = {"arm": "commanded", "bins": 256, "binning": "truncate", "scaling": "identity"}
    return Labels(**{**fields, "bounds": {"x": (-1.0, 1.0)}, **changes})


def episode_report(**changes: Any) -> EpisodeReport:
    fields: dict[str, Any] = {
        "store": "somewhere",
        "contract": "c",
        "episodes": 24,
        "steps": 100,
        "dimensions": ("x",),
        "labels": labels(),
        "token_accuracy": interval(0.5),
        "scaled_error": interval(0.1),
        "scaled_error_lazy": {},
        "ranges": {"x": 2.0},
        "lazy": {},
        "margin": {},
        "per_dimension": {},
    }
    return EpisodeReport(**{**fields, **changes})


def web_report(vqa_accuracy: float) -> WebReport:
    questions = QuestionScores(
        questions=10,
        vqa_accuracy=interval(vqa_accuracy),
        lazy={},
        margin={},
        perturbed={"shuffled_images": ShuffledAnswers(vqa_accuracy=interval(0.2), fall=interval(0.7))},
    )
    return WebReport(store="pictures", contract="c", examples=10, questions=questions)
