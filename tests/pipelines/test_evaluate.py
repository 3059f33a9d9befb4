from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.bootstrap import Bootstrap
from pipelines.catalogue import load_recipe
from pipelines.evaluate import (
    EvaluationConfig,
    Predictions,
    _correct,
    _lazy_tokens,
    evaluate,
    scored_dimensions,
)
from pipelines.training_data import training_contract
from preprocessing.episode_store import EpisodeStore
from rt_models.action_tokens import encode
from rt_models.rt1 import RT1
from rt_models.spec import Contract, ContractMismatch, DatasetContract


@pytest.fixture(scope="module")
def opened(store: str) -> EpisodeStore:
    return EpisodeStore.open(store)


@pytest.fixture(scope="module")
def contract(opened: EpisodeStore) -> Contract:
    return training_contract(load_recipe("rt1_tiny"), [opened])


@pytest.fixture(scope="module")
def model() -> RT1:
    return load_recipe("rt1_tiny").model.build().eval()


class Oracle(RT1):
    """Says what the batch says, wherever the frames are not blank."""

    def predict(self, batch, answered="all"):  # type: ignore[no-untyped-def]
        import torch

        tokens = encode(batch["action"][:, -1:], self.spec)
        seen = batch["frames"].float().amax() > 0
        return torch.nn.functional.one_hot(tokens * seen, self.spec.bins).float()


def test_a_policy_that_knows_is_always_right_and_blind_without_images(opened: EpisodeStore, contract: Contract) -> None:
    report = evaluate(Oracle(load_recipe("rt1_tiny").model), contract, opened, EvaluationConfig(bootstrap_samples=50))
    assert report["token_accuracy"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert report["episodes"] == 24 and report["steps"] == 254  # 278 steps, one of each episode terminal
    assert report["perturbed"]["blank_images"]["fall"]["low"] > 0
    assert report["perturbed"]["swapped_instructions"]["fall"]["mean"] == 0  # the oracle does not listen
    for scores in report["per_dimension"].values():
        assert scores["policy"]["mean_absolute_error"] < scores["mean_action"]["mean_absolute_error"]
    for name, margin in report["margin"].items():
        assert margin["mean"] == pytest.approx(1 - report["lazy"][name]["mean"])


def test_constant_and_absent_dimensions_are_not_scored(opened: EpisodeStore, contract: Contract, model: RT1) -> None:
    report = evaluate(model, contract, opened, EvaluationConfig(bootstrap_samples=10, perturbations=False))
    assert report["dimensions"] == [
        "terminate_episode",
        "world_vector_x",
        "world_vector_y",
        "world_vector_z",
        "gripper_closedness_action",
    ]


def test_a_model_of_another_contract_is_refused(opened: EpisodeStore, contract: Contract, model: RT1) -> None:
    with pytest.raises(ContractMismatch, match=r"the model has use-other, .* has hash-512"):
        evaluate(model, replace(contract, encoder="use-other"), opened, EvaluationConfig())


def predictions(tokens: list[list[int]], first: list[bool]) -> Predictions:
    array = np.array(tokens)
    episode = np.cumsum(first) - 1
    physical = array.astype(np.float32)
    return Predictions(
        episode_N=episode, first_N=np.array(first), physical_NA=physical, target_tokens_NA=array, tokens_NA=array
    )


def test_the_lazy_policies_by_hand(model: RT1) -> None:
    column = [5, 7, 7, 100, 7]
    found = predictions([[0] + [token] * 10 for token in column], [True, False, False, True, False])
    dims = np.array([3])
    assert (_lazy_tokens("most_frequent_token", found, model)[:, 3] == 7).all()
    assert _lazy_tokens("previous_action", found, model)[:, 3].tolist() == [7, 5, 7, 7, 100]
    mean = (5 + 7 + 7 + 100 + 7) / 5
    assert (np.abs(_lazy_tokens("mean_action", found, model)[:, 3] - mean) <= 1).all()
    assert _correct(_lazy_tokens("previous_action", found, model), found, dims).tolist() == [0, 0, 1, 0, 0]


def test_scored_are_dimensions_that_exist_and_vary(contract: Contract) -> None:
    dataset: DatasetContract = contract.datasets[0]
    tokens = [[0] * 11, [1] * 11]
    tokens[1][2] = 0
    assert scored_dimensions(dataset, predictions(tokens, [True, False])).tolist() == [0, 1, 3, 7]
    with pytest.raises(ValueError, match="no action dimension of metaworld_sample varies"):
        scored_dimensions(dataset, predictions([[0] * 11] * 2, [True, False]))


@given(st.integers(2, 9), st.integers(1, 5), st.floats(0, 1))
def test_intervals_hold_the_mean_and_vanish_without_spread(episodes: int, steps: int, value: float) -> None:
    members = np.repeat(np.arange(episodes), steps)
    interval = Bootstrap(samples=200).over(members)
    flat = interval(np.full(len(members), value))
    assert flat["low"] == pytest.approx(value) and flat["high"] == pytest.approx(value)
    spread = interval(members / episodes)
    assert spread["low"] <= spread["mean"] <= spread["high"]
