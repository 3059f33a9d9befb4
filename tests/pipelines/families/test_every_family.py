"""Every kind of model through train, evaluate, register, load and act."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.engine import TorchEngineConfig
from pipelines.catalogue import load_recipe
from pipelines.config.experiment import Experiment, InProcess
from pipelines.evaluation.scoring import EvaluationConfig, evaluate
from pipelines.families.models import FAMILIES, family_of, model_config
from pipelines.publishing.policy import load_policy
from pipelines.publishing.registration import register
from pipelines.publishing.trained_model import load_trained
from pipelines.train import run_training
from pipelines.training.co_fine_tuning import CoFineTuningConfig
from pipelines.training.job import TrainJob
from preprocessing.store.episode_store import EpisodeStore
from rt_models.rt2_vlm import RT2VLMConfig


def rt1(folder: Path) -> Experiment:
    return load_recipe("rt1_tiny")


def rt2(folder: Path) -> Experiment:
    return replace(load_recipe("rt2_tiny"), co_fine_tuning=CoFineTuningConfig(robot_share=1))


def rt2_vlm(folder: Path) -> Experiment:
    pytest.importorskip("transformers")
    from tests.support.rt2_folders import save_paligemma

    return replace(rt2(folder), model=RT2VLMConfig(path=str(save_paligemma(folder / "vlm"))))


TINY: dict[str, Callable[[Path], Experiment]] = {"RT1Config": rt1, "RT2Config": rt2, "RT2VLMConfig": rt2_vlm}


def test_every_family_is_run_here() -> None:
    assert {family.config_class.__name__ for family in FAMILIES} == set(TINY)


@pytest.mark.parametrize("kind", TINY)
def test_train_evaluate_register_load_act(
    kind: str, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    experiment, opened, output = TINY[kind](tmp_path), EpisodeStore.open(store), str(tmp_path / "run")
    loop = replace(experiment.loop, steps=2, global_batch=4, micro_batch=2, segment_windows=1)
    experiment = replace(experiment, loop=loop, launch=InProcess(), engine=TorchEngineConfig())
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    result = run_training(TrainJob(experiment=experiment, stores=(store,), output=output, tracking_uri=uri))
    assert result.steps == 2 and np.isfinite(result.metrics["loss"])

    trained = load_trained(output)
    assert family_of(trained.model) is family_of(experiment.model) and type(trained.model.config).__name__ == kind
    config = EvaluationConfig(bootstrap_samples=10, perturbations=False)
    assert 0 <= evaluate(trained.model, trained.contract, opened, config).token_accuracy.mean <= 1

    registered = register(output, name="tiny")
    text, frame = opened.instruction_texts[0], opened.read_rows(0, 0, ["image"])["image"][0].as_py()
    acted = [load_policy(source).act(frame, text) for source in (output, registered.model_uri)]
    assert acted[0] == acted[1] and list(acted[0].values) == list(opened.contract.action.names)
    assert acted[0].frames_seen == 1


def test_a_value_of_no_family_is_refused() -> None:
    with pytest.raises(TypeError, match="dict is no model or model config"):
        family_of({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model: no config class 'RT3Config': did you mean"):
        model_config({"type": "RT3Config"})
