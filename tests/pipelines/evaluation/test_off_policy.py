"""Off-policy estimates on a Markov decision process whose values are computed exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.cli import main
from pipelines.evaluation.off_policy import (
    RecordedSteps,
    fitted_q_return,
    importance_sampled_return,
    recorded_return,
)
from pipelines.evaluation.off_policy_store import require_rewards, rows_before
from pipelines.evaluation.statistics import Bootstrap
from preprocessing.store.episode_store import EpisodeStore
from tests.support.untrained import write_untrained

STATES, ACTIONS, HORIZON = 3, 2, 4
NEXT_SAS = np.array([[[0.8, 0.2, 0], [0.1, 0.9, 0]], [[0.5, 0.5, 0], [0, 0.2, 0.8]], [[0, 0, 1], [0.3, 0, 0.7]]])
REWARD_SA = np.array([[0.0, 0.1], [0.2, 0.5], [1.0, 0.0]])
BEHAVIOUR_SA = np.array([[0.5, 0.5], [0.6, 0.4], [0.5, 0.5]])
POLICY_S = np.array([1, 1, 0])  # always the same action in a state
BOOTSTRAP = Bootstrap(samples=400)


def value(policy_SA: np.ndarray) -> float:
    """The exact return over the horizon from state 0."""
    value_S = np.zeros(STATES)
    for _ in range(HORIZON):
        value_S = (policy_SA * (REWARD_SA + NEXT_SAS @ value_S)).sum(axis=1)
    return float(value_S[0])


def recorded(seed: int, episodes: int) -> tuple[RecordedSteps, np.ndarray, np.ndarray]:
    """Episodes of the behaviour policy: steps, states and actions."""
    rng = np.random.default_rng(seed)
    states, actions = [], []
    for _ in range(episodes):
        state = 0
        for _ in range(HORIZON):
            action = rng.choice(ACTIONS, p=BEHAVIOUR_SA[state])
            states.append(state)
            actions.append(action)
            state = rng.choice(STATES, p=NEXT_SAS[state, action])
    state_N, action_N = np.array(states), np.array(actions)
    steps = RecordedSteps(
        episode_N=np.repeat(np.arange(episodes), HORIZON),
        reward_N=REWARD_SA[state_N, action_N],
        ended_E=np.zeros(episodes, bool),
    )
    return steps, state_N, action_N


def one_hot(state_N: np.ndarray, action_N: np.ndarray) -> np.ndarray:
    return np.eye(STATES * ACTIONS)[state_N * ACTIONS + action_N]


def deterministic() -> np.ndarray:
    return np.eye(ACTIONS)[POLICY_S]


def test_fitted_q_evaluation_covers_the_exact_value_and_not_the_recorded_return() -> None:
    steps, state_N, action_N = recorded(0, 400)
    found = fitted_q_return(steps, one_hot(state_N, action_N), one_hot(state_N, POLICY_S[state_N]), BOOTSTRAP)
    assert found is not None
    exact = value(deterministic())
    assert found.low <= exact <= found.high and found.high - found.low < 0.3
    assert recorded_return(steps, BOOTSTRAP).high < exact


def test_the_interval_covers_as_often_as_it_says() -> None:
    exact, covered = value(deterministic()), 0
    for seed in range(60):
        steps, state_N, action_N = recorded(seed, 80)
        own_NF = one_hot(state_N, POLICY_S[state_N])
        found = fitted_q_return(steps, one_hot(state_N, action_N), own_NF, Bootstrap(samples=100))
        covered += found is not None and found.low <= exact <= found.high
    assert covered >= 51  # of 60: 57 are expected, fewer than 51 have a chance below 1 %


def test_what_is_worth_nothing_after_the_end_is_fitted_too() -> None:
    """One state, reward 1 and the end after one step: without the last step there would be nothing to fit."""
    steps = RecordedSteps(episode_N=np.arange(5), reward_N=np.ones(5), ended_E=np.ones(5, bool))
    found = fitted_q_return(steps, np.ones((5, 1)), np.ones((5, 1)), BOOTSTRAP)
    assert found is not None and found.mean == pytest.approx(1.0, rel=1e-4)


def test_a_fit_that_diverges_gives_no_number() -> None:
    steps = RecordedSteps(episode_N=np.repeat(np.arange(3), 50), reward_N=np.full(150, 0.1), ended_E=np.zeros(3, bool))
    assert fitted_q_return(steps, np.ones((150, 1)), np.full((150, 1), 3.0), BOOTSTRAP) is None


def test_importance_sampling_is_exact_for_the_policy_that_acted() -> None:
    steps, *_ = recorded(1, 50)
    found = importance_sampled_return(steps, np.zeros(len(steps.reward_N)), BOOTSTRAP)
    assert found.returns.mean == pytest.approx(steps.returns_E().mean(), abs=1e-12)
    assert found.effective_episodes == pytest.approx(50)


def test_importance_sampling_covers_the_exact_value() -> None:
    steps, state_N, action_N = recorded(2, 2000)
    policy_SA = 0.5 * deterministic() + 0.5 * BEHAVIOUR_SA
    ratio_N = np.log(policy_SA[state_N, action_N]) - np.log(BEHAVIOUR_SA[state_N, action_N])
    found = importance_sampled_return(steps, ratio_N, BOOTSTRAP)
    assert found.returns.low <= value(policy_SA) <= found.returns.high
    assert found.returns.high - found.returns.low < 0.3 and found.effective_episodes < 1500


def test_weights_that_differ_beyond_what_numbers_hold_stay_weights() -> None:
    steps, *_ = recorded(3, 4)
    ratio_N = np.zeros(16)
    ratio_N[:4] = 1000.0
    found = importance_sampled_return(steps, ratio_N, BOOTSTRAP)
    assert found.returns.mean == pytest.approx(steps.returns_E()[0]) and found.effective_episodes == pytest.approx(1)


# --- On a store ---

WORDS = ["--off-policy", "--no-perturbations", "--bootstrap-samples", "20"]


def test_the_command_labels_estimates_and_names_what_they_assume(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")  # cells of a narrow table are broken into lines
    model = str(write_untrained(store, tmp_path / "untrained"))
    words = [*WORDS, "--behaviour", model, "--html", "page.html", "--episodes", "1"]
    assert main(["evaluate", model, "--data", store, *words, "--json"]) == 0
    printed = capsys.readouterr().out
    (report,) = json.loads(printed.splitlines()[-1])["evaluations"]
    found: dict[str, Any] = report["off_policy"]
    assert found["recorded_return"]["mean"] == 1.0, "every demonstration ends with the reward of its terminal step"
    assert found["importance"]["returns"]["mean"] == pytest.approx(1.0)
    assert found["importance"]["effective_episodes"] == pytest.approx(report["episodes"])
    assert found["state"] == "the recorded state (4 values)" and len(found["assumptions"]) == 2
    for shown in (" ".join(printed.split()), Path("page.html").read_text()):
        assert "estimated by fitted Q" in shown and "Fitted Q evaluation assumes" in shown


def test_a_store_without_rewards_is_refused(monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    opened = EpisodeStore.open(store)
    require_rewards(opened)
    monkeypatch.setattr(EpisodeStore, "read_shard", lambda *_: pa.table({"reward": pa.array([1.0, None])}))
    with pytest.raises(ValueError, match="has steps without a reward: leave out --off-policy"):
        require_rewards(opened)


def test_a_change_of_frames_stays_within_its_episode() -> None:
    row_N, step_N = np.array([0, 1, 2, 3, 4, 6]), np.array([0, 1, 2, 0, 1, 3])
    assert rows_before(row_N, step_N).tolist() == [0, 0, 1, 3, 3, 6]


def test_a_model_of_who_acted_is_for_estimates_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "model", "--data", "store", "--behaviour", "other"]) == 2
    assert "--behaviour is for estimates of the return: add --off-policy" in capsys.readouterr().err
