"""Returns of two policies on the same seeds, against scipy's permutation test."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test

from pipelines.evaluation.closed_loop import EpisodeResult
from pipelines.evaluation.closed_loop_output import metrics_of
from pipelines.evaluation.closed_loop_report import POLICY, closed_loop_report, verdict
from pipelines.evaluation.returns import compare_returns, sign_flip
from pipelines.evaluation.statistics import Bootstrap
from pipelines.reports.rollout_page import actor_rows, policy_rows, success_rows


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=9))
def test_few_pairs_are_counted_exactly(differences: list[int]) -> None:
    values = np.array(differences, float)
    exact = permutation_test((values,), np.sum, permutation_type="samples", alternative="two-sided", n_resamples=np.inf)
    ours = sign_flip(values)
    assert ours == sign_flip(-values)
    assert ours == pytest.approx(exact.pvalue, abs=1e-12)


def test_many_pairs_are_drawn_and_never_0() -> None:
    random = np.random.default_rng(0)
    assert sign_flip(np.full(40, 3.0)) == pytest.approx(1e-4)
    assert sign_flip(random.normal(0.5, 1, 60)) < 0.05 < sign_flip(random.normal(0, 1, 60))


def test_a_difference_of_returns_with_its_interval() -> None:
    first, second = {"a": [900.0, 910.0, 890.0, 905.0] * 3}, {"a": [700.0, 720.0, 690.0, 715.0] * 3}
    compared = compare_returns(first, second, Bootstrap())
    assert compared.difference.mean == pytest.approx(195) and 190 < compared.difference.low < compared.difference.high
    assert compared.is_decided and compared.more_episodes == 0
    assert compare_returns(first, first, Bootstrap()).more_episodes is None
    with pytest.raises(ValueError, match="on the same episodes"):
        compare_returns(first, {"a": [1.0]}, Bootstrap())


def test_a_simulator_without_success_is_reported_by_return() -> None:
    def results(returns: list[float]) -> list[EpisodeResult]:
        return [
            EpisodeResult(
                task="walker-walk", seed=seed, instruction="", ending="step limit", steps=500, total_reward=value
            )
            for seed, value in enumerate(returns)
        ]

    report = closed_loop_report(
        {POLICY: results([500, 520, 480, 510, 530, 490]), "random": results([30, 40, 20, 35, 25, 30])},
        environment="dmc:walker-walk",
        contract="c",
        seeds=range(6),
        max_steps=500,
        control_hz=20,
        bootstrap=Bootstrap(samples=200),
        measure="return",
    )
    head, rows = actor_rows(report)
    assert head == ["", "return over all tasks"] and rows[0][1].startswith("505 [") and rows[1][1].startswith("30 [")
    assert success_rows(report)[1][0][2] == "30" and "mean steps to success" not in policy_rows(report)[0]
    assert metrics_of(report)["evaluation/dmc/walker-walk/return"] == 505
    told = verdict("random", report.compared["random"])
    assert told.startswith("policy against random: +475.0 of return [") and told.endswith("p = 0.031: above")
    data = report.to_json()
    assert "rate" not in data["actors"][POLICY] and data["actors"][POLICY]["returns"]["mean"] == 505  # type: ignore[index]
    assert data["measure"] == "return" and "V-D4RL" in data["definitions"][0]  # type: ignore[index]
