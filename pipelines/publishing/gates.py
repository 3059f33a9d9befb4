"""Conditions that a model must meet before an alias moves to it, over the metrics of `rtp evaluate`.

    token_accuracy>=0.6                           a number
    scaled_error<=champion                        the value of the alias's present holder on the same episodes
    margin.previous_action.low>champion-0.02      less, or more, than that

A metric is a path into one entry of `evaluations` in the output of `rtp evaluate --json`; of an interval, its mean.
With several held-out stores a condition must hold on each that has the metric. Metrics that mean different things for
the two models, such as token accuracies at other bins, are refused (pipelines/evaluation/comparison.py).
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.config.serialization import did_you_mean, flatten
from pipelines.evaluation.comparison import PHYSICAL, obstacle
from pipelines.evaluation.report import EvaluationReport

_RELATIONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_FORM = re.compile(rf"\s*([\w.]+)\s*(<=|>=|<|>)\s*(?:({_NUMBER})|champion\s*([+-]\s*{_NUMBER})?)\s*")

Metrics = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of one condition on one store, with its numbers."""

    passed: bool
    text: str


@dataclass(frozen=True, kw_only=True)
class Gate:
    """`metric` `relation` `bound`; if `against_champion`, the bound is the champion's value plus `bound`."""

    metric: str
    relation: str
    bound: float
    against_champion: bool

    @staticmethod
    def parse(text: str) -> Gate:
        """Raises ValueError if it is no condition."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError(
                f"--gate {text!r} is no condition: write METRIC>=NUMBER or METRIC>=champion (<=, < and > too)"
            )
        metric, relation, number, change = match.groups()
        bound = float((number or change or "0").replace(" ", ""))
        return Gate(metric=metric, relation=relation, bound=bound, against_champion=number is None)

    def judge(self, mine: Metrics, champion: Metrics | None, *, holder: str | None) -> Verdict:
        """`champion`: the metrics of version `holder` on the same episodes. Without a champion, a comparison with it
        passes. NaN passes no gate. Raises ValueError for an unknown metric."""
        value = self._of(mine)
        if not self.against_champion:
            bound, meant = self.bound, ""
        elif champion is None:
            passed = not math.isnan(value)
            outcome = "passed, there is no champion yet" if passed else "failed"
            return Verdict(passed=passed, text=f"{self.metric} {value:.6g}: {outcome}")
        else:
            change = f"{self.bound:+g}" if self.bound else ""
            bound, meant = self._of(champion) + self.bound, f" (version {holder}{change})"
        passed = holds(self.relation, value, bound)
        text = f"{self.metric} {value:.6g} {self.relation} {bound:.6g}{meant}: {'passed' if passed else 'failed'}"
        return Verdict(passed=passed, text=text)

    def _of(self, metrics: Metrics) -> float:
        if self.metric == PHYSICAL and PHYSICAL not in metrics:
            remedy = "give a store of robot episodes, or --gate 'vqa_accuracy>=champion'"
            raise ValueError(f"--gate {PHYSICAL} is of actions, and these are image-text examples: {remedy}")
        if self.metric not in metrics:
            hint = did_you_mean(self.metric, list(metrics))
            if "did you mean" not in hint:  # there are some hundred: leave out the ends of intervals
                hint = did_you_mean(self.metric, [m for m in metrics if not m.endswith((".mean", ".low", ".high"))])
            raise ValueError(f"--gate: there is no metric {self.metric!r}{hint}")
        return metrics[self.metric]


def holds(relation: str, value: float, bound: float) -> bool:
    """`value` `relation` `bound`; NaN holds nothing."""
    return bool(_RELATIONS[relation](value, bound))


def metrics_of(report: EvaluationReport) -> dict[str, float]:
    """The numbers of an evaluation by path; an interval's mean stands under the interval's own name too."""
    flat = {path: float(value) for path, value in flatten(report.to_json()).items() if isinstance(value, int | float)}
    means = {path.removesuffix(".mean"): value for path, value in flat.items() if path.endswith(".mean")}
    return means | flat


def judge_all(
    gates: Sequence[Gate],
    mine: Mapping[str, EvaluationReport],
    champion: Mapping[str, EvaluationReport] | None,
    *,
    holder: str | None,
) -> list[Verdict]:
    """Every gate on every store that has its metric; `mine` and `champion` are evaluations by store.

    Raises ValueError for a metric that no store has, and for one that does not compare with the champion's.
    """
    metrics = {store: metrics_of(report) for store, report in mine.items()}
    theirs = {store: metrics_of(report) for store, report in (champion or {}).items()}
    verdicts = []
    for gate in gates:
        stores = [store for store in metrics if gate.metric in metrics[store]] or list(metrics)  # else it is unknown
        if gate.against_champion and champion is not None:
            for store in stores:
                _require_comparable(gate.metric, mine[store], champion[store], holder=holder)
        verdicts += [gate.judge(metrics[store], theirs.get(store), holder=holder) for store in stores]
    return verdicts


def _require_comparable(metric: str, mine: EvaluationReport, theirs: EvaluationReport, *, holder: str | None) -> None:
    reason = obstacle(metric, mine, theirs, me="the new model", them=f"version {holder}")
    if reason is not None:
        raise ValueError(f"--gate: {reason}")
