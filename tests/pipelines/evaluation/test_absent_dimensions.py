"""One rule for dimensions that a policy does not answer in: evaluation, Python and the served model agree on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from pipelines.catalogue import load_recipe
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.report import EpisodeReport
from pipelines.evaluation.scoring import evaluation_of
from pipelines.families.rt2 import with_tokenizer
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.inference import InferenceModel
from pipelines.publishing.instructions import Instructions
from pipelines.publishing.mlflow_model import write_policy
from pipelines.publishing.mlflow_policy import MlflowPolicy
from pipelines.publishing.model_origin import ModelOrigin
from pipelines.publishing.policy import LoadedPolicy
from pipelines.training.co_fine_tuning import CoFineTuningConfig
from pipelines.training.data import training_contract
from preprocessing.store.episode_store import EpisodeStore
from rt_models.action_tokens import encode
from rt_models.rt2 import RT2Config

QUICK = EvaluationConfig(bootstrap_samples=10, perturbations=False)


@pytest.fixture(scope="module")
def opened(store: str) -> EpisodeStore:
    return EpisodeStore.open(store)


@pytest.fixture(scope="module")
def trained(opened: EpisodeStore) -> TrainedModel:
    """An RT-2 whose text leaves out a dimension that the store has, with a scale that is not symmetric about 0."""
    experiment = replace(load_recipe("rt2_tiny"), co_fine_tuning=CoFineTuningConfig(robot_share=1))
    assert isinstance(experiment.model, RT2Config)
    text = replace(experiment.model.text, fields=("terminate_episode", "world_vector_x", "gripper_closedness_action"))
    config = with_tokenizer(replace(experiment.model, text=text), [opened])
    contract = training_contract(replace(experiment, model=config), [opened])
    (side,) = contract.datasets
    offset = tuple(0.25 if name == "world_vector_z" else 0.0 for name in contract.action.names)
    side = replace(side, transform=replace(side.transform, offset=offset))
    return TrainedModel(
        model=config.build().eval(),
        contract=replace(contract, datasets=(side,)),
        step=0,
        source="here",
        origin=ModelOrigin(git_revision="none"),
        instructions=Instructions("hash-512", {}),
    )


def test_evaluate_act_and_serve_say_the_same_in_every_dimension(
    trained: TrainedModel, opened: EpisodeStore, tmp_path: Path
) -> None:
    evaluation = evaluation_of(trained.model, trained.contract, opened, QUICK)
    assert evaluation.predicted_NA is not None and evaluation.predictions is not None
    names = trained.contract.action.names
    assert isinstance(evaluation.report, EpisodeReport)
    assert "world_vector_z" in evaluation.report.dimensions  # scored, since the dataset has it
    assert (evaluation.predicted_NA[:, names.index("world_vector_z")] == 0).all()
    rows = opened.read_rows(0, 0, ["image", "instruction"]).slice(0, 3).to_pylist()
    texts = dict(zip(opened.instruction_ids.tolist(), opened.instruction_texts, strict=True))
    policy, served = LoadedPolicy(InferenceModel(trained), None), MlflowPolicy()
    served.load_context(SimpleNamespace(artifacts={"policy": str(write_policy(trained, tmp_path))}))
    for number, row in enumerate(rows):
        text = texts[row["instruction"]]
        action = policy.act(row["image"], text)
        np.testing.assert_array_equal(np.float32([*action.values.values()]), evaluation.predicted_NA[number])
        asked = pd.DataFrame([{"image": row["image"], "instruction": text, "robot": "arm"}])
        (answer,) = served.predict(None, asked).to_dict("records")
        assert {name: answer[name] for name in names} == dict(action.values)
        assert tuple(answer["absent"]) == action.absent and "world_vector_z" in action.absent


def test_the_tokens_of_absent_dimensions_are_those_of_the_neutral_value(
    trained: TrainedModel, opened: EpisodeStore
) -> None:
    evaluation = evaluation_of(trained.model, trained.contract, opened, QUICK)
    assert evaluation.predictions is not None
    place = trained.contract.action.names.index("world_vector_z")
    dataset = trained.contract.datasets[0]
    zero_A = dataset.transform.apply(np.zeros(trained.contract.action.size, np.float32))
    assert zero_A[place] == 0.25  # 0 m is not the model's 0
    expected = encode(torch.from_numpy(zero_A), trained.contract.action)[place]
    assert set(evaluation.predictions.tokens_NA[:, place]) == {int(expected)}
