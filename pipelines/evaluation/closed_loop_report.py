"""What closed-loop episodes amount to, typed; `to_json` is the form that `rtp evaluate --env` writes and gates read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from pipelines.evaluation.closed_loop import EpisodeResult
from pipelines.evaluation.closed_loop_config import ShownFrames
from pipelines.evaluation.returns import PairedReturns, compare_returns
from pipelines.evaluation.statistics import Bootstrap, Interval
from pipelines.evaluation.success_rates import PairedComparison, compare_paired, mean_over_tasks, wilson
from preprocessing.simulation.environment import Measure

POLICY, AGAINST = "policy", "against"
SWAPPED, BLANK = "policy with swapped instructions", "policy with blank images"
REWORDED, SHUFFLED = "policy with paraphrases", "policy with shuffled embeddings"
DEFINITIONS_OF_RETURN = (
    "A return is the sum of an episode's rewards: at most 1,000 in dm_control's suite; V-D4RL's scores are a tenth. "
    "An episode with an error has the rewards up to it, and is listed.",
    "Intervals are of 95 %: the mean of the tasks, episodes resampled within a task.",
)
DEFINITIONS = (
    "An episode succeeds when the simulator says so at any step; it ends then, when the policy declares the end, or at "
    "the step limit. An episode with an error is a failure.",
    "Intervals are of 95 %: Wilson's for one task; over tasks the mean of the tasks, episodes resampled within a task, "
    "or where no task has both successes and failures, Wilson's over all episodes.",
)


@dataclass(frozen=True, kw_only=True)
class TaskSuccess:
    """One actor in one task."""

    episodes: int
    successes: int
    rate: Interval
    mean_steps_to_success: float | None
    """None without a success."""
    mean_reward: float
    returns: Interval
    """The mean return with its interval."""
    errors: int = 0
    terminated: int = 0
    """Episodes that the policy itself ended without success."""


@dataclass(frozen=True, kw_only=True)
class ActorReport:
    """One actor over all tasks."""

    tasks: Mapping[str, TaskSuccess]
    rate: Interval
    returns: Interval
    results: tuple[EpisodeResult, ...] = field(repr=False)

    def successes(self) -> dict[str, list[bool]]:
        """By task, in the order of seeds."""
        return {task: [result.success for result in own] for task, own in self._by_task().items()}

    def total_rewards(self) -> dict[str, list[float]]:
        """By task, in the order of seeds."""
        return {task: [result.total_reward for result in own] for task, own in self._by_task().items()}

    def _by_task(self) -> dict[str, list[EpisodeResult]]:
        ordered = sorted(self.results, key=lambda result: result.seed)
        return {task: [result for result in ordered if result.task == task] for task in self.tasks}


@dataclass(frozen=True, kw_only=True)
class ClosedLoopReport:
    """`actors` holds the policy first, then baselines and variants of the policy that saw or heard something else."""

    environment: str
    contract: str
    seeds: tuple[int, ...]
    max_steps: int
    control_hz: float
    actors: Mapping[str, ActorReport]
    compared: Mapping[str, PairedComparison | PairedReturns]
    """The policy against each other actor, on the same seeds."""
    errors: tuple[str, ...]
    measure: Measure = "success"
    frames: ShownFrames | None = None
    """How Meta-World's were drawn; None where nobody said."""

    @property
    def definitions(self) -> tuple[str, ...]:
        stated = DEFINITIONS if self.measure == "success" else DEFINITIONS_OF_RETURN
        if self.frames is None or self.measure == "return":
            return stated
        drawn = f"Frames are drawn from view {self.frames.view} with JPEG quality {self.frames.jpeg_quality}."
        return (*stated, drawn, *(f"Note: {remark}." for remark in self.frames.remarks))

    def to_json(self) -> dict[str, object]:
        """Plain data, every episode included."""
        return {
            "environment": self.environment,
            "contract": self.contract,
            "first_seed": self.seeds[0],
            "episodes_per_task": len(self.seeds),
            "max_steps": self.max_steps,
            "control_hz": self.control_hz,
            "measure": self.measure,
            "definitions": list(self.definitions),
            **({} if self.frames is None else {"frames": asdict(self.frames)}),
            "actors": {name: _actor_json(report, self.measure) for name, report in self.actors.items()},
            "compared": {name: asdict(comparison) for name, comparison in self.compared.items()},
            "errors": list(self.errors),
        }


def _actor_json(report: ActorReport, measure: Measure) -> dict[str, object]:
    """Without what the simulator does not measure."""
    episodes = [asdict(result) for result in report.results]
    if measure == "success":
        tasks = {task: _without(asdict(success), "returns") for task, success in report.tasks.items()}
        return {"rate": asdict(report.rate), "tasks": tasks, "episodes": episodes}
    successes = ("successes", "rate", "mean_steps_to_success", "mean_reward")
    tasks = {task: _without(asdict(success), *successes) for task, success in report.tasks.items()}
    return {"returns": asdict(report.returns), "tasks": tasks, "episodes": episodes}


def _without(data: dict[str, object], *names: str) -> dict[str, object]:
    return {key: value for key, value in data.items() if key not in names}


def actor_report(results: Sequence[EpisodeResult], bootstrap: Bootstrap) -> ActorReport:
    """Raises ValueError without results."""
    tasks = list(dict.fromkeys(result.task for result in results))
    by_task = {task: [result for result in results if result.task == task] for task in tasks}
    successes = {task: [float(result.success) for result in own] for task, own in by_task.items()}
    rewards = {task: [result.total_reward for result in own] for task, own in by_task.items()}
    varies = any(len(set(own)) > 1 for own in successes.values())
    rate = mean_over_tasks(successes, bootstrap)
    if not varies:  # resampling then always gives the same mean, which is no sign of certainty
        pooled = wilson(sum(result.success for result in results), len(results))
        rate = replace(rate, low=min(pooled.low, rate.mean), high=max(pooled.high, rate.mean))
    return ActorReport(
        tasks={task: _task_success(own, bootstrap) for task, own in by_task.items()},
        rate=rate,
        returns=mean_over_tasks(rewards, bootstrap),
        results=tuple(results),
    )


def _task_success(results: Sequence[EpisodeResult], bootstrap: Bootstrap) -> TaskSuccess:
    steps = [result.steps for result in results if result.success]
    return TaskSuccess(
        episodes=len(results),
        successes=len(steps),
        rate=wilson(len(steps), len(results)),
        mean_steps_to_success=float(np.mean(steps)) if steps else None,
        mean_reward=float(np.mean([result.total_reward for result in results])),
        returns=mean_over_tasks({"": [result.total_reward for result in results]}, bootstrap),
        errors=sum(result.ending == "error" for result in results),
        terminated=sum(result.ending == "terminated" for result in results),
    )


def closed_loop_report(
    results: Mapping[str, Sequence[EpisodeResult]],
    *,
    environment: str,
    contract: str,
    seeds: Sequence[int],
    max_steps: int,
    control_hz: float,
    bootstrap: Bootstrap,
    measure: Measure = "success",
    frames: ShownFrames | None = None,
) -> ClosedLoopReport:
    """From the results of each actor, `POLICY`'s first."""
    actors = {name: actor_report(own, bootstrap) for name, own in results.items()}
    others = [name for name in actors if name != POLICY]
    return ClosedLoopReport(
        environment=environment,
        contract=contract,
        seeds=tuple(seeds),
        max_steps=max_steps,
        control_hz=control_hz,
        actors=actors,
        compared={name: _compared(actors[POLICY], actors[name], bootstrap, measure) for name in others},
        errors=tuple(_errors(results)),
        measure=measure,
        frames=frames,
    )


def _compared(
    policy: ActorReport, other: ActorReport, bootstrap: Bootstrap, measure: Measure
) -> PairedComparison | PairedReturns:
    """On the tasks of `other`."""
    if measure == "return":
        mine, theirs = policy.total_rewards(), other.total_rewards()
        return compare_returns({task: mine[task] for task in theirs}, theirs, bootstrap)
    mine, theirs = policy.successes(), other.successes()
    return compare_paired({task: mine[task] for task in theirs}, theirs, bootstrap)


def _errors(results: Mapping[str, Iterable[EpisodeResult]]) -> Iterable[str]:
    for name, own in results.items():
        for result in own:
            if result.error is not None:
                yield f"{name}, {result.task}, seed {result.seed}: {result.error}"


def verdict(name: str, comparison: PairedComparison | PairedReturns) -> str:
    """One sentence: whether the policy is above or below `name` on these seeds, or how many episodes would decide."""
    of_success = isinstance(comparison, PairedComparison)
    factor, unit, test = (100, "points", "McNemar") if of_success else (1, "of return", "permutation test")
    difference = comparison.difference
    shown = f"policy against {name}: {factor * difference.mean:+.1f} {unit}"
    if difference.low < difference.high:
        shown += f" [{factor * difference.low:+.1f}, {factor * difference.high:+.1f}]"
    shown += f" in {comparison.episodes} pairs of episodes, {test} p = {comparison.p_value:.2g}"
    if comparison.is_decided:
        return f"{shown}: {'above' if difference.mean > 0 else 'below'}"
    if comparison.more_episodes is None:
        return f"{shown}: alike"
    if comparison.more_episodes == 0:
        return f"{shown}: not decided, and near it"
    return f"{shown}: not decided; about {comparison.more_episodes} more episodes would decide such a difference"
