"""How a sweep went: its trials, and the best point of the space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from tuning.ledger import Ledger, State
from tuning.ranking import Point
from tuning.space import Parameters, parameters_text
from tuning.sweep import Sweep
from tuning.tuner import Outcome


@dataclass(frozen=True, kw_only=True)
class Takeover:
    """Population-based training: at `step` the trial took over the weights of the trial `parent`."""

    step: int
    parent: int


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One trial. `objectives` are the newest values, None for what was not measured; `reason`: of a failure or stop."""

    number: int
    point: int
    seed: int
    state: State
    step: int
    seconds: float
    attempts: int
    reason: str
    parameters: Parameters
    objectives: Mapping[str, float | None]
    lineage: tuple[Takeover, ...]
    output: str

    @staticmethod
    def of(sweep: Sweep, ledger: Ledger, number: int) -> TrialResult:
        record = ledger.trials[number]
        return TrialResult(
            number=number,
            point=record.point,
            seed=record.seed,
            state=record.state,
            step=record.step,
            seconds=record.seconds,
            attempts=record.attempts,
            reason=record.reason,
            parameters=dict(record.parameters),
            objectives={objective.metric: record.last(objective.metric) for objective in sweep.objectives},
            lineage=tuple(Takeover(step=each.step, parent=each.parent) for each in record.lineage),
            output=ledger.output(number),
        )


@dataclass(frozen=True, kw_only=True)
class BestPoint:
    """`objectives`: medians over the seeds. `trials` are those of the point; `output` is the folder of the first.

    config: the YAML file with which `rtp train --config` trains it again.
    """

    point: int
    parameters: Parameters
    objectives: Mapping[str, float]
    trials: tuple[int, ...]
    output: str
    config: str

    @staticmethod
    def of(sweep: Sweep, ledger: Ledger, chosen: Point, config: str) -> BestPoint:
        """`chosen` must have medians."""
        assert chosen.medians is not None
        return BestPoint(
            point=chosen.number,
            parameters=dict(chosen.parameters),
            objectives={o.metric: value for o, value in zip(sweep.objectives, chosen.medians, strict=True)},
            trials=tuple(trial.number for trial in chosen.trials),
            output=ledger.output(chosen.trials[0].number),
            config=config,
        )


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What `pipelines.tune.tune` returns. `steps`: optimizer steps of all trials together."""

    sweep: str
    recipe: str
    outcome: Outcome
    output: str
    report: str
    mlflow_run_id: str
    trials: tuple[TrialResult, ...]
    best: BestPoint | None

    @property
    def steps(self) -> int:
        return sum(trial.step for trial in self.trials)

    @property
    def states(self) -> dict[str, int]:
        """How many trials ended in each state, in the order of their numbers."""
        return dict(Counter(trial.state for trial in self.trials))

    @property
    def exit_code(self) -> int:
        return {"complete": 0 if self.best else 1, "budget": 0, "interrupted": 130}[self.outcome]

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "steps": self.steps, "states": self.states, "exit_code": self.exit_code}

    def text(self) -> str:
        states = ", ".join(f"{count} {state}" for state, count in self.states.items())
        lines = [f"sweep {self.sweep}: {states}; {self.steps} optimizer steps; {self.report}"]
        if self.best is not None:
            scores = ", ".join(f"{name} {value:.4f}" for name, value in self.best.objectives.items())
            lines.append(f"best: {parameters_text(self.best.parameters)}: {scores}")
        elif self.outcome == "complete":
            lines.append("no trial has finished: the table says why")
        if self.outcome == "budget":
            lines.append("the budget is used up: give a larger one, such as --budget.trials; --resume continues")
        if self.outcome == "interrupted":
            lines.append("stopped; --resume continues")
        return "\n".join(lines)
