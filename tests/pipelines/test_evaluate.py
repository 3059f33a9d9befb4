from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.catalogue import load_recipe
from pipelines.evaluation import statistics as bootstrap
from pipelines.evaluation.baselines import baseline_tokens
from pipelines.evaluation.comparison import compared, labels_of, obstacle
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.physical_error import ErrorScale
from pipelines.evaluation.predictions import Predictions
from pipelines.evaluation.scoring import correct_share, evaluate, scored_dimensions
from pipelines.evaluation.statistics import Bootstrap
from pipelines.families.windows import WindowFamily
from pipelines.training.data import training_contract
from preprocessing.store.episode_store import EpisodeStore
from rt_models.action_scaling import Scaling
from rt_models.action_tokens import encode
from rt_models.rt1 import RT1, RT1Config
from rt_models.spec import Bounds, Contract, ContractMismatch, DatasetContract, Identity, Quantiles
from tests.support.reports import episode_report, interval


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

    def predict(self, batch, output_steps="all"):  # type: ignore[no-untyped-def]
        import torch

        tokens = encode(batch["action"][:, -1:], self.spec)
        seen = batch["frames"].float().amax() > 0
        return torch.nn.functional.one_hot(tokens * seen, self.spec.bins).float()


def test_a_policy_that_knows_is_always_right_and_blind_without_images(opened: EpisodeStore, contract: Contract) -> None:
    report = evaluate(Oracle(load_recipe("rt1_tiny").model), contract, opened, EvaluationConfig(bootstrap_samples=50))
    assert report.token_accuracy == interval(1.0)
    assert report.episodes == 24 and report.steps == 254  # 278 steps, one of each episode terminal
    assert report.perturbed is not None
    assert report.perturbed["blank_images"].fall.low > 0
    assert report.perturbed["swapped_instructions"].fall.mean == 0  # the oracle ignores the instruction
    for scores in report.per_dimension.values():
        assert scores.policies["policy"].mean_absolute_error < scores.policies["mean_action"].mean_absolute_error
    for name, margin in report.margin.items():
        assert margin.mean == pytest.approx(1 - report.lazy[name].mean)


def test_constant_and_absent_dimensions_are_not_scored(opened: EpisodeStore, contract: Contract, model: RT1) -> None:
    report = evaluate(model, contract, opened, EvaluationConfig(bootstrap_samples=10, perturbations=False))
    assert report.dimensions == (
        "terminate_episode",
        "world_vector_x",
        "world_vector_y",
        "world_vector_z",
        "gripper_closedness_action",
    )
    assert report.perturbed is None and "perturbed" not in report.to_json()


def test_batches_of_few_shapes_are_scored_alike(
    opened: EpisodeStore, contract: Contract, model: RT1, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: 278 rows in pieces of 64, the last one filled, images padded to at most three numbers."""
    config = EvaluationConfig(bootstrap_samples=10)
    plain = evaluate(model, contract, opened, config)
    numbers: list[int] = []
    handle = model.tokenizer.register_forward_hook(lambda module, inputs, output: numbers.append(len(output)))
    evaluate(model, contract, opened, replace(config, perturbations=False))
    assert len(numbers) == 5 and len(set(numbers)) == 3  # the first piece, the last, and those between
    numbers.clear()
    monkeypatch.setattr(WindowFamily, "_wants_few_shapes", lambda self, device: True)
    padded = evaluate(model, contract, opened, config)
    handle.remove()
    assert len(numbers) == 3 * 5 and len(set(numbers)) == 2  # the first is padded too
    assert padded == plain


def test_a_model_of_another_contract_is_refused(opened: EpisodeStore, contract: Contract, model: RT1) -> None:
    with pytest.raises(ContractMismatch, match=r"the model has use-other, .* has hash-512"):
        evaluate(model, replace(contract, encoder="use-other"), opened, EvaluationConfig())


def predictions(tokens: list[list[int]], first: list[bool]) -> Predictions:
    array = np.array(tokens)
    episode = np.cumsum(first) - 1
    step = np.arange(len(first)) - np.flatnonzero(first)[episode]
    physical = array.astype(np.float32)
    return Predictions(episode_N=episode, step_N=step, physical_NA=physical, target_tokens_NA=array, tokens_NA=array)


def test_the_lazy_policies_by_hand(model: RT1) -> None:
    column = [5, 7, 7, 100, 7]
    found = predictions([[0] + [token] * 10 for token in column], [True, False, False, True, False])
    dims = np.array([3])
    assert (baseline_tokens("most_frequent_token", found, model)[:, 3] == 7).all()
    assert baseline_tokens("previous_action", found, model)[:, 3].tolist() == [7, 5, 7, 7, 100]
    mean = (5 + 7 + 7 + 100 + 7) / 5
    assert (np.abs(baseline_tokens("mean_action", found, model)[:, 3] - mean) <= 1).all()
    assert correct_share(baseline_tokens("previous_action", found, model), found, dims).tolist() == [0, 0, 1, 0, 0]


def test_the_previous_action_is_never_another_episodes(model: RT1) -> None:
    found = predictions([[token] * 11 for token in (5, 7, 9, 100)], [True, False, True, False])
    found = replace(found, step_N=found.step_N + 1)  # the first step of each episode is terminal or left out
    assert found.first_N.tolist() == [True, False, True, False]


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
    assert flat.low == pytest.approx(value) and flat.high == pytest.approx(value)
    spread = interval(members / episodes)
    assert spread.low <= spread.mean <= spread.high


def test_intervals_of_many_groups_are_those_of_all_weights_at_once_within_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(1)
    for groups in (1, 24, 333):
        members = np.repeat(np.arange(groups), random.integers(1, 9, groups))
        values = random.random(len(members))
        draws = np.random.default_rng(0).integers(groups, size=(2000, groups))
        weights = np.stack([np.bincount(draw, minlength=groups) for draw in draws])
        means = (weights @ np.bincount(members, weights=values)) / (weights @ np.bincount(members))
        for block in (2**21, 1000):
            monkeypatch.setattr(bootstrap, "_BLOCK", block)
            found = Bootstrap().over(members)(values)
            assert [found.low, found.high] == np.quantile(means, [0.025, 0.975]).tolist()


def test_a_block_of_weights_stays_small_whatever_the_number_of_episodes() -> None:
    block = next(Bootstrap()._weights(100_000))
    assert block.shape == (bootstrap._BLOCK // 100_000, 100_000)
    tracemalloc.start()
    Bootstrap(samples=60).over(np.arange(100_000))(np.ones(100_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6  # all weights of 2,000 resamples at once are 4.8 GB


# --- errors in physical units, and what compares ---


def of_bins(bins: int, contract: Contract, scaling: Scaling | None = None) -> tuple[RT1, Contract]:
    """A model that always answers rightly, and its contract, with so many bins."""
    model = Oracle(replace(load_recipe("rt1_tiny").model, bins=bins))
    return model, contract.trained_with(model.spec, scaling or Identity())


def test_the_scaled_error_sees_the_width_of_bins_where_token_accuracy_does_not(
    opened: EpisodeStore, contract: Contract
) -> None:
    config = EvaluationConfig(bootstrap_samples=10, perturbations=False)
    reports = {bins: evaluate(*of_bins(bins, contract, Bounds()), opened, config) for bins in (16, 256)}
    errors = {bins: report.scaled_error.mean for bins, report in reports.items()}
    assert reports[16].token_accuracy.mean == reports[256].token_accuracy.mean == 1
    assert 0 < errors[256] < 0.005 < errors[16] < 0.06  # half a bin, and the class is always right
    assert reports[16].ranges == reports[256].ranges
    lazy = [reports[bins].scaled_error_lazy["mean_action"].mean for bins in (16, 256)]
    assert lazy[0] == pytest.approx(lazy[1], abs=0.05) and lazy[1] > 10 * errors[256]


def test_the_scaled_error_by_hand(opened: EpisodeStore) -> None:
    scale = ErrorScale.of(opened.contract)
    names = [opened.contract.action.names[dim] for dim in scale.dims]
    assert names[0] == "terminate_episode" and "rotation_delta_x" not in names  # constant there
    recorded = np.zeros((2, 11), np.float32)
    predicted = recorded.copy()
    predicted[1, scale.dims] = scale.ranges_D  # off by the whole range, and another class
    assert scale.errors(predicted, recorded).tolist() == pytest.approx([0, 1])
    predicted[1, 0] = 2  # however far the class number is
    predicted[:, 4] = 9e9  # a dimension that the dataset does not have
    assert scale.errors(predicted, recorded).tolist() == pytest.approx([0, 1])


def test_token_metrics_of_other_bins_are_refused_and_physical_ones_compared(
    opened: EpisodeStore, contract: Contract
) -> None:
    config = EvaluationConfig(bootstrap_samples=10, perturbations=False)
    now, coarse = (evaluate(*of_bins(bins, contract), opened, config) for bins in (256, 16))
    before = compared(now, coarse, me="new", them="old")
    assert before.scores == {"scaled_error": coarse.scaled_error}
    sentence = before.not_compared["token_accuracy"]
    assert "old (16 bins, truncate, scaling identity)" in sentence and "new (256 bins, truncate" in sentence
    assert "scaled_error" in sentence and "\n" not in sentence
    scaled = evaluate(*of_bins(256, contract, Quantiles()), opened, config)
    said = obstacle("margin.mean_action.low", now, scaled, me="new", them="old")
    assert said is not None and "scaling q01-q99" in said and "scaling identity" in said
    metric = "per_dimension.world_vector_x.policy.mean_absolute_error"
    assert obstacle(metric, now, scaled, me="new", them="old") is None
    assert obstacle("token_accuracy", now, replace(now, store="elsewhere"), me="new", them="old") is None


def test_other_bounds_of_the_bins_and_other_labels_are_named(opened: EpisodeStore, contract: Contract) -> None:
    now = episode_report(labels=labels_of(contract.action, contract.datasets[0], [1, 2]))
    other_bounds = labels_of(RT1Config.rt1x().action_spec(), contract.datasets[0], [1, 2])
    wide = episode_report(labels=replace(other_bounds, bins=256))
    said = obstacle("token_accuracy", now, wide, me="new", them="old")
    for labels in (now.labels, wide.labels):
        low, high = labels.bounds["world_vector_x"]
        assert f"256 bins of world_vector_x from {low:.6g} to {high:.6g}" in str(said)
    fewer = episode_report(labels=labels_of(contract.action, contract.datasets[0], [1]))
    assert "of world_vector_x)" in str(obstacle("token_accuracy", now, fewer, me="new", them="old"))
    reached = episode_report(labels=replace(now.labels, arm="reached"))
    said = obstacle("scaled_error", now, reached, me="new", them="old")
    assert said is not None and "old was trained on what the arm reached" in said
