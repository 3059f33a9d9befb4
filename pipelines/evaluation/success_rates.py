"""Statistics of closed-loop success: rates with intervals, policies compared on the same seeds, offline against real.

Sources: Wilson 1927 (interval of a proportion); McNemar 1947, in its exact binomial form; Connor, Biometrics 1987
(sample size of a paired comparison); Li et al., SIMPLER, CoRL 2024 (mean maximum rank violation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.evaluation.statistics import Bootstrap, Interval

Z_95 = 1.959963984540054
Z_80 = 0.8416212335729143  # power of 80 %


def wilson(successes: int, trials: int) -> Interval:
    """The 95 % interval of a success rate. Raises ValueError without trials, or with more successes than trials."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"a success rate needs 0 <= successes <= trials and a trial, got {successes} of {trials}")
    rate = successes / trials
    spread = 1 + Z_95**2 / trials
    centre = (rate + Z_95**2 / (2 * trials)) / spread
    half = Z_95 * math.sqrt(rate * (1 - rate) / trials + Z_95**2 / (4 * trials**2)) / spread
    return Interval(mean=rate, low=max(centre - half, 0.0), high=min(centre + half, 1.0))


def mean_over_tasks(outcomes: Mapping[str, Sequence[float]], bootstrap: Bootstrap) -> Interval:
    """The mean of the tasks' means with its 95 % interval; episodes are resampled within their task.

    Tasks are not a sample of anything: they stay as they are. Works for successes (0 or 1), returns and differences.
    """
    values = [np.asarray(task, np.float64) for task in outcomes.values()]
    if not values or min(map(len, values)) == 0:
        raise ValueError("a mean over tasks needs at least one episode of every task")
    random = np.random.default_rng(bootstrap.seed)
    means_KS = np.stack([_resampled_means(task, bootstrap.samples, random) for task in values])
    low, high = np.quantile(means_KS.mean(axis=0), [0.025, 0.975])
    return Interval(mean=float(np.mean([task.mean() for task in values])), low=float(low), high=float(high))


def _resampled_means(value_N: np.ndarray, samples: int, random: np.random.Generator) -> np.ndarray:
    draws_SN = random.integers(len(value_N), size=(samples, len(value_N)))
    return value_N[draws_SN].mean(axis=1)


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Two policies on the same tasks and seeds. `difference` is the first one's success rate minus the second's."""

    episodes: int
    only_first: int
    """Episodes in which the first policy succeeded and the second did not."""
    only_second: int
    difference: Interval
    p_value: float
    """Exact two-sided McNemar: the chance of so uneven a split of the discordant pairs between equal policies."""
    more_episodes: int | None
    """Episodes still missing to tell a difference of this size with 80 % power; 0 if there are enough, None if the
    rates are equal and no number would tell."""

    @property
    def is_decided(self) -> bool:
        return self.p_value < 0.05


def compare_paired(
    first: Mapping[str, Sequence[bool]], second: Mapping[str, Sequence[bool]], bootstrap: Bootstrap
) -> PairedComparison:
    """Compare successes by task; the n-th episode of a task had the same seed under both policies.

    Raises ValueError if the two did not run the same episodes.
    """
    differences = paired_differences(first, second)
    all_N = np.array([value for values in differences.values() for value in values])
    only_first, only_second = int((all_N > 0).sum()), int((all_N < 0).sum())
    needed = episodes_to_decide(only_first / len(all_N), only_second / len(all_N))
    return PairedComparison(
        episodes=len(all_N),
        only_first=only_first,
        only_second=only_second,
        difference=mean_over_tasks(differences, bootstrap),
        p_value=mcnemar(only_first, only_second),
        more_episodes=None if needed is None else max(needed - len(all_N), 0),
    )


def paired_differences(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]
) -> dict[str, list[float]]:
    """By task, what each episode of `first` has more than that of `second`.

    Raises ValueError if the two did not run the same episodes.
    """
    if {task: len(values) for task, values in first.items()} != {task: len(values) for task, values in second.items()}:
        raise ValueError("two policies are compared on the same episodes: give both the same tasks, seeds and number")
    return {task: np.subtract(first[task], second[task], dtype=np.float64).tolist() for task in first}


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of the two counts of discordant pairs, Binomial(n, 1/2)."""
    pairs, fewer = only_first + only_second, min(only_first, only_second)
    if only_first == only_second:
        return 1.0
    tail = sum(math.comb(pairs, count) for count in range(fewer + 1))
    return min(2 * tail / 2**pairs, 1.0)


def episodes_to_decide(only_first: float, only_second: float) -> int | None:
    """Pairs for 80 % power at a two-sided level of 5 %, from the rates of both discordant outcomes; None if equal."""
    difference, discordant = only_first - only_second, only_first + only_second
    if difference == 0:
        return None
    spread = Z_95 * math.sqrt(discordant) + Z_80 * math.sqrt(max(discordant - difference**2, 0.0))
    return math.ceil((spread / difference) ** 2)


def mean_maximum_rank_violation(predicted_P: Sequence[float], measured_P: Sequence[float]) -> float:
    """MMRV of P policies or checkpoints, 0 (same order) to 1: for each, the largest gap of measured success to one that
    the prediction ranks the other way; their mean. The gaps are of `measured_P`.
    """
    predicted, measured = _two_scores(predicted_P, measured_P)
    is_swapped_PP = (predicted[:, None] > predicted) != (measured[:, None] > measured)
    gap_PP = np.abs(measured[:, None] - measured)
    return float(np.where(is_swapped_PP, gap_PP, 0.0).max(axis=1).mean())


def pearson(predicted_P: Sequence[float], measured_P: Sequence[float]) -> float | None:
    """The correlation of two scores of P policies or checkpoints; None if one of them does not vary."""
    predicted, measured = _two_scores(predicted_P, measured_P)
    if np.ptp(predicted) == 0 or np.ptp(measured) == 0:
        return None
    return float(np.corrcoef(predicted, measured)[0, 1])


def _two_scores(predicted_P: Sequence[float], measured_P: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    if len(predicted_P) != len(measured_P) or len(predicted_P) < 2:
        raise ValueError(
            f"two scores of at least two policies are needed, got {len(predicted_P)} and {len(measured_P)}"
        )
    return np.asarray(predicted_P, np.float64), np.asarray(measured_P, np.float64)
