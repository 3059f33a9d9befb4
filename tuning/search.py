"""Which parameters to try next: a pure function of what has been tried, so that a resumed sweep asks the same."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution

from tuning.space import Parameters, Space, distributions, from_optuna, grid, to_optuna

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A point and what is known of it: the value of every objective, or None while it runs or where it failed.

    pruned_at: (step, value of the first objective) where it was stopped early.
    """

    parameters: Parameters
    values: tuple[float, ...] | None = None
    pruned_at: tuple[int, float] | None = None
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """Independent draws from the space."""

    def propose(self, space: Space, directions: Sequence[str], tried: Sequence[Tried], seed: int) -> Parameters | None:
        """The parameters of the next point, None when there are no more."""
        import optuna

        return _ask(optuna.samplers.RandomSampler(seed=_seed(seed, tried)), space, directions, tried)


@dataclass(frozen=True, kw_only=True)
class TpeSearch:
    """Optuna's tree-structured Parzen estimator, over one objective or several."""

    startup_points: int = 8
    """Random points before the model is used."""

    def __post_init__(self) -> None:
        if self.startup_points < 1:
            raise ValueError(f"TpeSearch needs startup_points >= 1, got {self.startup_points}")

    def propose(self, space: Space, directions: Sequence[str], tried: Sequence[Tried], seed: int) -> Parameters | None:
        """The parameters of the next point, None when there are no more."""
        import optuna

        if len(tried) < self.startup_points:  # the very points that RandomSearch draws
            return RandomSearch().propose(space, directions, tried, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=_seed(seed, tried),
                n_startup_trials=self.startup_points,
                multivariate=True,
                constant_liar=True,  # points that still run count as bad: the next one goes elsewhere
            )
        return _ask(sampler, space, directions, tried)


@dataclass(frozen=True, kw_only=True)
class GridSearch:
    """Every combination of the space's choices, in order."""

    def propose(self, space: Space, directions: Sequence[str], tried: Sequence[Tried], seed: int) -> Parameters | None:
        """The parameters of the next point, None when there are no more."""
        return next(islice(grid(space), len(tried), None), None)


SearchConfig = RandomSearch | TpeSearch | GridSearch


def _seed(seed: int, tried: Sequence[Tried]) -> int:
    """Another one for every point of every sweep, below numpy's limit."""
    return (1_000_003 * seed + len(tried)) % 2**32


def _ask(
    sampler: optuna.samplers.BaseSampler, space: Space, directions: Sequence[str], tried: Sequence[Tried]
) -> Parameters:
    """A study that knows what has been tried is made anew for each question: nothing of Optuna's is kept."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=sampler, directions=["minimize" if direction == "min" else "maximize" for direction in directions]
    )
    known = distributions(space)
    for point in tried:
        study.add_trial(_frozen(point, space, known))
    return from_optuna(space, study.ask(fixed_distributions=known).params)


def _frozen(point: Tried, space: Space, known: dict[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    import optuna

    extra: dict[str, Any] = {}
    state = optuna.trial.TrialState.RUNNING
    if point.failed:
        state = optuna.trial.TrialState.FAIL
    elif point.values is not None:
        state, extra = optuna.trial.TrialState.COMPLETE, {"values": [float(value) for value in point.values]}
    elif point.pruned_at is not None:
        step, value = point.pruned_at
        state, extra = optuna.trial.TrialState.PRUNED, {"value": value, "intermediate_values": {step: value}}
    return optuna.trial.create_trial(
        state=state, params=to_optuna(space, point.parameters), distributions=known, **extra
    )
