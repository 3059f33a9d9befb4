"""Statistics of success rates against scipy and published figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipelines.evaluation.statistics import Bootstrap
from pipelines.evaluation.success_rates import (
    compare_paired,
    episodes_to_decide,
    mcnemar,
    mean_maximum_rank_violation,
    mean_over_tasks,
    pearson,
    wilson,
)


@given(trials=st.integers(1, 500), share=st.floats(0, 1))
def test_wilsons_interval_is_scipys(trials: int, share: float) -> None:
    successes = round(share * trials)
    ours = wilson(successes, trials)
    theirs = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.mean == successes / trials


@pytest.mark.parametrize("successes, trials", [(0, 0), (3, 2), (-1, 2)])
def test_no_rate_without_trials(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="a success rate needs"):
        wilson(successes, trials)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test_of_discordant_pairs(only_first: int, only_second: int) -> None:
    pairs = only_first + only_second
    theirs = stats.binomtest(only_first, pairs).pvalue if pairs else 1.0
    assert mcnemar(only_first, only_second) == pytest.approx(theirs, rel=1e-9)


def test_the_interval_of_one_task_is_scipys_bootstrap() -> None:
    value_N = np.random.default_rng(3).random(40) < 0.4
    ours = mean_over_tasks({"door": value_N.astype(float).tolist()}, Bootstrap(samples=5_000))
    theirs = stats.bootstrap((value_N,), np.mean, n_resamples=5_000, method="percentile", rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.026)  # one success in 40


def test_tasks_count_alike_and_are_not_resampled() -> None:
    outcomes = {"easy": [1.0] * 90, "hard": [0.0] * 10}
    mean = mean_over_tasks(outcomes, Bootstrap(samples=100))
    assert (mean.mean, mean.low, mean.high) == (0.5, 0.5, 0.5)


def test_the_spread_over_tasks_is_that_of_the_mean_of_independent_rates() -> None:
    outcomes = {str(task): [0.0, 1.0] * 100 for task in range(4)}
    mean = mean_over_tasks(outcomes, Bootstrap(samples=4_000))
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 200 / 4), rel=0.1)


def test_a_better_policy_is_told_from_a_worse_one_on_the_same_seeds() -> None:
    better, worse = {"door": [True] * 18 + [False] * 2}, {"door": [True] * 8 + [False] * 12}
    compared = compare_paired(better, worse, Bootstrap())
    assert (compared.only_first, compared.only_second, compared.episodes) == (10, 0, 20)
    assert compared.p_value == pytest.approx(2 / 2**10) and compared.is_decided
    assert compared.difference.mean == 0.5 and compared.difference.low > 0
    assert compared.more_episodes == 0


def test_a_small_difference_asks_for_more_episodes() -> None:
    first, second = {"door": [True] * 17 + [False] * 3}, {"door": [True] * 13 + [False] * 3 + [True] + [False] * 3}
    compared = compare_paired(first, second, Bootstrap())
    assert not compared.is_decided
    assert compared.more_episodes is not None and compared.more_episodes > 0


def test_equal_policies_are_never_told_apart() -> None:
    same = {"door": [True, False, True]}
    compared = compare_paired(same, same, Bootstrap())
    assert compared.p_value == 1.0 and compared.more_episodes is None


def test_other_episodes_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="same episodes"):
        compare_paired({"door": [True]}, {"door": [True, False]}, Bootstrap())


def test_the_number_of_pairs_gives_the_power_that_it_promises() -> None:
    """Simulated: with so many pairs, about 80 % of comparisons come out under 5 %."""
    only_first, only_second = 0.25, 0.10
    pairs = episodes_to_decide(only_first, only_second)
    assert pairs is not None
    shares = [only_first, only_second, 1 - only_first - only_second]
    counts = np.random.default_rng(0).multinomial(pairs, shares, size=2_000)
    decided = np.mean([mcnemar(int(first), int(second)) < 0.05 for first, second, _ in counts])
    assert 0.74 < decided < 0.86


def test_mmrv_and_pearson_of_published_scores() -> None:
    """RT-1 converged, RT-1 at 15 %, RT-1-X and RT-1 at its begin, on real robots and in SIMPLER (its tables)."""
    coke_can, coke_can_simulated = [0.853, 0.920, 0.760, 0.133], [0.857, 0.710, 0.567, 0.027]
    drawer, drawer_simulated = [0.926, 0.889, 0.741, 0.0], [0.861, 0.667, 0.891, 0.278]
    # The two best change places, at a gap of .067. With drawers RT-1-X is ahead of the two that are better.
    assert mean_maximum_rank_violation(coke_can_simulated, coke_can) == pytest.approx(2 * 0.067 / 4)
    assert mean_maximum_rank_violation(drawer_simulated, drawer) == pytest.approx((0.185 + 0.148 + 0.185) / 4)
    assert pearson(drawer_simulated, drawer) == pytest.approx(stats.pearsonr(drawer_simulated, drawer).statistic)


def test_the_gaps_of_mmrv_are_the_measured_ones() -> None:
    assert mean_maximum_rank_violation([0.1, 0.2], [0.9, 0.1]) == pytest.approx(0.8)
    assert mean_maximum_rank_violation([0.1, 0.2], [0.1, 0.9]) == 0.0


def test_a_score_that_does_not_vary_has_no_correlation() -> None:
    assert pearson([0.5, 0.5], [0.1, 0.9]) is None
    with pytest.raises(ValueError, match="at least two policies"):
        pearson([0.5], [0.5])
