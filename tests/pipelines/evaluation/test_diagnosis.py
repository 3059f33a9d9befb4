"""Near misses, seldom events and probabilities of predictions whose right scores are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluation.calibration import calibrate, calibration_error
from pipelines.evaluation.diagnosis import Detection, diagnose, matched
from pipelines.evaluation.predictions import Predictions
from pipelines.families.base import TEMPERATURES
from pipelines.families.windows import _at_temperatures
from pipelines.reports.prediction_view import bin_confusions
from pipelines.reports.run_page import detection_rows, diagnosis_rows
from rt_models.action_space import rt1_action_spec

SPEC = rt1_action_spec()
X, GRIPPER = SPEC.names.index("world_vector_x"), SPEC.names.index("gripper_closedness_action")


def predictions(target: np.ndarray, answered: np.ndarray, episode: np.ndarray, physical: np.ndarray) -> Predictions:
    steps = np.concatenate([np.arange((episode == one).sum()) for one in np.unique(episode)])
    return Predictions(
        episode_N=episode, step_N=steps, physical_NA=physical, target_tokens_NA=target, tokens_NA=answered
    )


def test_near_misses_ends_and_gripper_events() -> None:
    target = np.zeros((12, SPEC.size), np.int64)
    target[:, 0] = 1
    target[[5, 11], 0] = 0  # each of two episodes ends
    target[:, X] = 100
    answered = target.copy()
    answered[:, X] += np.array([0, 1, -1, 2, 3, 4, 5, 0, 0, 0, 0, 9])
    answered[11, 0], answered[3, 0] = 1, 0  # one end is missed, one is told where there is none
    physical = np.zeros((12, SPEC.size), np.float32)
    physical[:, GRIPPER] = [-1, -1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1]
    predicted = physical.copy()
    predicted[:, GRIPPER] = [-1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1, -1]
    found = diagnose(
        predictions(target, answered, np.repeat([3, 7], 6), physical), predicted, SPEC, np.array([0, X, GRIPPER])
    )
    assert found.dimensions["world_vector_x"].within_bins == pytest.approx({"1": 7 / 12, "2": 8 / 12, "4": 10 / 12})
    assert found.dimensions["terminate_episode"].within_bins == pytest.approx(dict.fromkeys("124", 10 / 12))
    assert found.terminate == Detection(recorded=2, predicted=2, precision=0.5, recall=0.5, f1=0.5)
    # Recorded: closes at 2, opens at 5; in the second episode closes at 3. Predicted: closes at 3; opens at 1.
    assert found.gripper_events == Detection(recorded=3, predicted=2, precision=0.5, recall=1 / 3, f1=0.4)
    assert found.dimensions["world_vector_x"].calibration is None
    assert detection_rows(found)[0] == ["gripper turns", "3", "2", "0.50", "0.33", "0.40"]
    assert diagnosis_rows(found)[1][1] == "58.3 %"


def test_an_event_is_matched_once_and_within_two_steps() -> None:
    assert matched([(5, True), (6, True)], [(6, True)]) == 1
    assert matched([(5, True)], [(7, True)]) == 1 and matched([(5, True)], [(8, True)]) == 0
    assert matched([(5, True)], [(5, False)]) == 0
    assert matched([(5, True), (8, True)], [(6, True), (7, True)]) == 2


def test_calibration_of_a_model_that_is_too_sure() -> None:
    """Its logits are three times too large: a temperature near 3 mends them."""
    random = np.random.default_rng(0)
    logits = torch.tensor(random.normal(0, 1.5, (6000, 1, 8)), dtype=torch.float32)
    target = torch.distributions.Categorical(logits=logits).sample()
    right = (logits.argmax(-1) == target)[:, 0].numpy()
    episode = np.arange(6000) // 10
    honest, sure = (
        calibrate(*(part[:, 0].numpy() for part in _at_temperatures(scale * logits, target)), right, episode)
        for scale in (1, 3)
    )
    assert honest.temperature == 1.0 and honest.calibration_error < 0.03
    assert sure.temperature == 2.8 and sure.calibration_error > 0.15
    assert sure.calibration_error_at_temperature < 0.05
    assert sure.negative_log_likelihood_at_temperature < sure.negative_log_likelihood
    assert sure.negative_log_likelihood_at_temperature == pytest.approx(honest.negative_log_likelihood, abs=0.01)


def test_likelihood_and_confidence_are_the_softmax_s() -> None:
    logits, target = torch.randn(5, 2, 7), torch.randint(7, (5, 2))
    likelihood, confidence = _at_temperatures(logits, target)
    one = TEMPERATURES.index(1.0)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    torch.testing.assert_close(-likelihood[..., one].flatten(), expected)
    torch.testing.assert_close(confidence[..., one], logits.softmax(-1).amax(-1))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_a_calibration_error_is_a_share(pairs: list[tuple[float, bool]]) -> None:
    confidence, right = (np.array(column, float) for column in zip(*pairs, strict=True))
    assert 0 <= calibration_error(confidence, right) <= 1
    assert calibration_error(right, right) == 0


def test_confusion_is_drawn_by_groups_of_bins() -> None:
    target = np.zeros((3, SPEC.size), np.int64)
    target[:, X] = [0, 128, 255]
    answered = target.copy()
    answered[2, X] = 0
    page = bin_confusions(
        predictions(target, answered, np.zeros(3, np.int64), target.astype(np.float32)), SPEC, ["world_vector_x"], 256
    )
    assert page.count('fill-opacity="1.00"') == 3 and "world_vector_x" in page
