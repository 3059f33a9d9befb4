"""What closed-loop episodes amount to, typed; `to_json` is the form that `rtp evaluate --env` writes and gates read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from pipelines.evaluation.closed_loop import EpisodeResult
from pipelines.evaluation.statistics import Bootstrap, Interval
from pipelines.evaluation.success_rates import PairedComparison, compare_paired, mean_over_tasks, wilson

POLICY, AGAINST = "policy", "against"
SWAPPED, BLANK = "policy with swapped instructions", "policy with blank images"
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
    errors: int = 0
    terminated: int = 0
    """Episodes that the policy itself ended without success."""


@dataclass(frozen=True, kw_only=True)
class ActorReport:
    """One actor over all tasks."""

    tasks: Mapping[str, TaskSuccess]
    rate: Interval
    results: tuple[EpisodeResult, ...] = field(repr=False)

    def successes(self) -> dict[str, list[bool]]:
        """By task, in the order of seeds."""
        by_task: dict[str, list[bool]] = {task: [] for task in self.tasks}
        for result in sorted(self.results, key=lambda result: result.seed):
            by_task[result.task].append(result.success)
        return by_task


@dataclass(frozen=True, kw_only=True)
class ClosedLoopReport:
    """`actors` holds the policy first, then baselines and variants of the policy that saw or heard something else."""

    environment: str
    contract: str
    seeds: tuple[int, ...]
    max_steps: int
    control_hz: float
    actors: Mapping[str, ActorReport]
    compared: Mapping[str, PairedComparison]
    """The policy against each other actor, on the same seeds."""
    errors: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Plain data, every episode included."""
        return {
            "environment": self.environment,
            "contract": self.contract,
            "first_seed": self.seeds[0],
            "episodes_per_task": len(self.seeds),
            "max_steps": self.max_steps,
            "control_hz": self.control_hz,
            "definitions": list(DEFINITIONS),
            "actors": {name: _actor_json(report) for name, report in self.actors.items()},
            "compared": {name: asdict(comparison) for name, comparison in self.compared.items()},
            "errors": list(self.errors),
        }


def _actor_json(report: ActorReport) -> dict[str, object]:
    tasks = {task: asdict(success) for task, success in report.tasks.items()}
    return {"rate": asdict(report.rate), "tasks": tasks, "episodes": [asdict(result) for result in report.results]}


def actor_report(results: Sequence[EpisodeResult], bootstrap: Bootstrap) -> ActorReport:
    """Raises ValueError without results."""
    tasks = list(dict.fromkeys(result.task for result in results))
    by_task = {task: [result for result in results if result.task == task] for task in tasks}
    successes = {task: [float(result.success) for result in own] for task, own in by_task.items()}
    varies = any(len(set(own)) > 1 for own in successes.values())
    rate = mean_over_tasks(successes, bootstrap)
    if not varies:  # resampling then always gives the same mean, which is no sign of certainty
        pooled = wilson(sum(result.success for result in results), len(results))
        rate = replace(rate, low=min(pooled.low, rate.mean), high=max(pooled.high, rate.mean))
    return ActorReport(
        tasks={task: _task_success(own) for task, own in by_task.items()}, rate=rate, results=tuple(results)
    )


def _task_success(results: Sequence[EpisodeResult]) -> TaskSuccess:
    steps = [result.steps for result in results if result.success]
    return TaskSuccess(
        episodes=len(results),
        successes=len(steps),
        rate=wilson(len(steps), len(results)),
        mean_steps_to_success=float(np.mean(steps)) if steps else None,
        mean_reward=float(np.mean([result.total_reward for result in results])),
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
) -> ClosedLoopReport:
    """From the results of each actor, `POLICY`'s first."""
    actors = {name: actor_report(own, bootstrap) for name, own in results.items()}
    policy = actors[POLICY].successes()
    others = {name: actor.successes() for name, actor in actors.items() if name != POLICY}
    return ClosedLoopReport(
        environment=environment,
        contract=contract,
        seeds=tuple(seeds),
        max_steps=max_steps,
        control_hz=control_hz,
        actors=actors,
        compared={
            name: compare_paired({task: policy[task] for task in other}, other, bootstrap)
            for name, other in others.items()
        },
        errors=tuple(_errors(results)),
    )


def _errors(results: Mapping[str, Iterable[EpisodeResult]]) -> Iterable[str]:
    for name, own in results.items():
        for result in own:
            if result.error is not None:
                yield f"{name}, {result.task}, seed {result.seed}: {result.error}"


def verdict(name: str, comparison: PairedComparison) -> str:
    """One sentence: whether the policy is above or below `name` on these seeds, or how many episodes would decide."""
    difference, points = comparison.difference, 100 * comparison.difference.mean
    shown = f"policy against {name}: {points:+.1f} points"
    if difference.low < difference.high:
        shown += f" [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    shown += f" in {comparison.episodes} pairs of episodes, McNemar p = {comparison.p_value:.2g}"
    if comparison.is_decided:
        return f"{shown}: {'above' if points > 0 else 'below'}"
    if comparison.more_episodes is None:
        return f"{shown}: alike"
    if comparison.more_episodes == 0:
        return f"{shown}: not decided, and near it"
    return f"{shown}: not decided; about {comparison.more_episodes} more episodes would decide such a difference"
