"""Gates on success: `rtp register RUN --env metaworld:door-lock,door-unlock --gate 'success>=champion'`.

Both models act under the same seeds, and the interval of their paired difference decides, because a few episodes more
or less are chance:

    success>=0.6              the mean over tasks is at least 60 %
    success>=champion         not shown to be below the champion: the interval reaches 0
    success>champion          shown to be above it: the whole interval is above 0
    success>=champion-0.05    not shown to be more than 5 points below it
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.config.compute import Compute
from pipelines.evaluation.closed_loop_config import ClosedLoopConfig
from pipelines.evaluation.closed_loop_report import AGAINST, POLICY, ClosedLoopReport, verdict
from pipelines.evaluation.closed_loop_setup import prepare
from pipelines.evaluation.statistics import Bootstrap
from pipelines.publishing.gates import Gate, Verdict, holds

SUCCESS = "success"
"""The metric of such gates."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Where models act to be judged, and how often in each task."""

    environment: str
    episodes: int = 20
    workers: int = 0

    def report(self, model: str, champion: str | None, compute: Compute) -> ClosedLoopReport:
        """Act with `model`, and with `champion` if there is one. Both are what `load_trained` takes.

        Raises ValueError if one of them does not act in what moves the simulated robot.
        """
        config = ClosedLoopConfig(env=self.environment, against=champion, baselines=(), workers=self.workers)
        loop = prepare(model, config, episodes=self.episodes, seed=0, compute=compute)
        if loop.environments[0].measure != SUCCESS:
            raise ValueError(
                f"{self.environment} is measured by return, and gates are of success: use Meta-World's tasks"
            )
        return loop.run(Bootstrap())


def is_of_success(gate: Gate) -> bool:
    return gate.metric == SUCCESS


def judge_success(gate: Gate, report: ClosedLoopReport, *, holder: str | None) -> Verdict:
    """`report`: of the new model, and of version `holder` if the alias points at one. Without one, a comparison passes.

    Raises ValueError for a gate that wants little success.
    """
    if gate.relation.startswith("<"):
        raise ValueError(f"--gate: more success is better, so {SUCCESS} takes >= or >, not {gate.relation}")
    rate = report.actors[POLICY].rate
    shown = f"{SUCCESS} {rate.mean:.3f} [{rate.low:.3f}, {rate.high:.3f}]"
    if not gate.against_champion:
        passed = holds(gate.relation, rate.mean, gate.bound)
        return Verdict(passed=passed, text=f"{shown} {gate.relation} {gate.bound:g}: {_outcome(passed)}")
    if AGAINST not in report.compared:
        return Verdict(passed=True, text=f"{shown}: passed, there is no champion yet")
    comparison = report.compared[AGAINST]
    difference = comparison.difference
    passed = holds(gate.relation, difference.high if gate.relation == ">=" else difference.low, gate.bound)
    change = f"{gate.bound:+g}" if gate.bound else ""
    text = f"{shown} {gate.relation} version {holder}{change}; {verdict(f'version {holder}', comparison)}"
    return Verdict(passed=passed, text=f"{text}: {_outcome(passed)}")


def _outcome(passed: bool) -> str:
    return "passed" if passed else "failed"
