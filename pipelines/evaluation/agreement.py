"""Whether an offline score ranks checkpoints as the simulator does: mean maximum rank violation and correlation.

Offline and closed-loop reports of one checkpoint are matched by model and step. Sources: SIMPLER (arXiv 2405.05941) for
the mean maximum rank violation, whose gaps are those of the simulated score here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.evaluation.closed_loop_report import POLICY
from pipelines.evaluation.record import home_of
from pipelines.evaluation.success_rates import mean_maximum_rank_violation, pearson

Checkpoint = tuple[str, int]
"""Home of the model, and step."""
_KINDS = {"closed_loop", "evaluations"}
_LESS_IS_BETTER = ("scaled_error", "negative_log_likelihood", "calibration_error", "mean_absolute_error")
_LITTLE_IS_GOOD = "frozen_state/fall"  # a policy that copies its state loses much; of pictures and words it should


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One offline score against the simulated one, over the checkpoints that have both."""

    score: str
    checkpoints: int
    mmrv: float
    """0: the same order. In units of the simulated score."""
    pearson: float | None
    """Positive where better offline goes with better simulated; None if one of the two does not vary."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What evaluation files say of each checkpoint: offline scores by name, and success, or return, by name."""

    offline: Mapping[Checkpoint, Mapping[str, float]]
    simulated: Mapping[Checkpoint, Mapping[str, float]]

    def agreements(self) -> list[Agreement]:
        """The best first. Raises ValueError unless two checkpoints or more have both kinds of score."""
        both = sorted(self.offline.keys() & self.simulated.keys())
        if len(both) < 2:
            raise ValueError(
                f"{len(both)} checkpoints have both kinds of score, and two are needed: evaluate each with --data "
                f"({len(self.offline)} are there) and with --env ({len(self.simulated)} are there)"
            )
        measures = set.intersection(*(set(self.simulated[place]) for place in both))
        if len(measures) != 1:
            raise ValueError("checkpoints acted in other tasks or under different seeds: give evaluations of one kind")
        measured = [self.simulated[place][min(measures)] for place in both]
        if len(set(measured)) == 1:
            raise ValueError(
                f"all {len(both)} checkpoints have the same {json.loads(min(measures))[0]} ({measured[0]:g}), so there "
                f"is nothing to rank: evaluate checkpoints that differ, or more episodes"
            )
        shared = sorted(set.intersection(*(set(self.offline[place]) for place in both)))
        found = [_agreement(name, [self.offline[place][name] for place in both], measured) for name in shared]
        return sorted(found, key=lambda each: (each.mmrv, -(each.pearson or 0.0)))


def _agreement(name: str, offline: Sequence[float], measured: Sequence[float]) -> Agreement:
    less_is_better = name == _LITTLE_IS_GOOD or name.rpartition("/")[2].startswith(_LESS_IS_BETTER)
    sign = -1.0 if less_is_better else 1.0
    predicted = [sign * value for value in offline]
    return Agreement(
        score=name,
        checkpoints=len(predicted),
        mmrv=mean_maximum_rank_violation(predicted, measured),
        pearson=pearson(predicted, measured),
    )


def read_scores(paths: Iterable[str]) -> Scores:
    """From files that `rtp evaluate` wrote, or folders of them. Raises ValueError for a file that is no evaluation."""
    offline: dict[Checkpoint, dict[str, float]] = {}
    simulated: dict[Checkpoint, dict[str, float]] = {}
    for path in _files(paths):
        data = _read(path)
        place = (home_of(str(data["model"])), int(data["step"]))
        if "closed_loop" in data:
            scores = data["closed_loop"]
            setting = [scores["environment"], scores["first_seed"], scores["episodes_per_task"]]
            policy, measure = scores["actors"][POLICY], scores.get("measure", "success")
            mean = policy["rate" if measure == "success" else "returns"]["mean"]
            simulated.setdefault(place, {})[json.dumps([measure, *setting])] = float(mean)
        else:
            offline.setdefault(place, {}).update(_offline(data["evaluations"]))
    return Scores(offline=offline, simulated=simulated)


def _files(paths: Iterable[str]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        found = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            raise ValueError(f"{path} holds no evaluation: give files that rtp evaluate wrote, or a run's evaluations/")
        files += found
    return files


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except ValueError:
        data = None
    if not isinstance(data, dict) or not {"model", "step"} <= data.keys() or not data.keys() & _KINDS:
        raise ValueError(f"{path} is no evaluation that rtp evaluate wrote")
    return data


def _offline(reports: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over stores of every score with an interval, also within perturbations: `blank_images/fall`."""
    found: dict[str, list[float]] = {}
    for report in reports:
        sections = {"": report, **{f"{kind}/": scores for kind, scores in (report.get("perturbed") or {}).items()}}
        for prefix, section in sections.items():
            for name, value in section.items():
                if isinstance(value, Mapping) and {"mean", "low", "high"} == value.keys():
                    found.setdefault(prefix + name, []).append(float(value["mean"]))
    return {name: float(np.mean(values)) for name, values in found.items()}
