"""An RT-2 as it is served: it reads any text, sees the frames that it was trained on, and carries its base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from pipelines.catalogue import load_recipe
from pipelines.families.rt2 import with_tokenizer
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.mlflow_model import write_policy
from pipelines.publishing.mlflow_policy import MlflowPolicy
from pipelines.training.co_fine_tuning import CoFineTuningConfig
from pipelines.training.data import training_contract
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image
from rt_models.control.rt2_policy import RT2Policy
from rt_models.rt2 import RT2, RT2Config
from rt_models.rt2_vlm import RT2VLMConfig
from tests.pipelines.publishing.test_mlflow_policy import UNKNOWN, UNTRAINED, ask, frames, opened, seen, text
from tests.support.command_line import REPOSITORY

__all__ = ["frames", "opened", "text"]


@pytest.fixture(scope="module")
def trained_rt2(opened: EpisodeStore) -> TrainedModel:
    experiment = replace(load_recipe("rt2_tiny"), co_fine_tuning=CoFineTuningConfig(robot_share=1))
    assert isinstance(experiment.model, RT2Config)
    model = with_tokenizer(experiment.model, [opened]).build().eval()
    contract = training_contract(experiment, [opened])
    return TrainedModel(model=model, contract=contract, step=0, source="here", origin=UNTRAINED, instructions=UNKNOWN)


def test_rt2_is_served_alike_and_reads_any_text(
    trained_rt2: TrainedModel, opened: EpisodeStore, frames: list[bytes], text: str, tmp_path: Path
) -> None:
    served = MlflowPolicy()
    folder = write_policy(trained_rt2, tmp_path)
    served.load_context(SimpleNamespace(artifacts={"policy": str(folder)}))
    rows = [{"image": frames[0], "instruction": words, "robot": "a"} for words in (text, "never heard of")]
    side, model = trained_rt2.contract.datasets[0], trained_rt2.model
    assert isinstance(model, RT2)
    policy = RT2Policy(model, model.config.build_text(), dataset=side)
    expected = [policy.act(decode_image(frames[0]), row["instruction"]).values for row in rows]
    np.testing.assert_allclose(ask(served, *rows), expected, atol=1e-6)
    with pytest.raises(ValueError, match="row 0: this policy reads instructions as text"):
        ask(served, {"image": frames[0], "embedding": opened.embeddings[0]})


def test_a_served_rt2_of_two_frames_sees_both(
    trained_rt2: TrainedModel, frames: list[bytes], text: str, tmp_path: Path
) -> None:
    config = trained_rt2.model.config
    assert isinstance(config, RT2Config)
    model = replace(config, text=replace(config.text, frames=2)).build().eval()
    folder = write_policy(
        replace(trained_rt2, model=model, contract=replace(trained_rt2.contract, num_steps=2)), tmp_path
    )
    served = MlflowPolicy()
    served.load_context(SimpleNamespace(artifacts={"policy": str(folder)}))
    passes: list[int] = []
    handle = served._model.begin()(served._contract.datasets[0]).model.vision.register_forward_hook(  # type: ignore[attr-defined]
        lambda module, inputs, output: passes.append(len(output))
    )
    rows = [{"image": frame, "instruction": text, "robot": name} for frame in frames[:2] for name in "ab"]
    answer = served.predict(None, pd.DataFrame(rows))
    assert seen(answer) == [1, 1, 2, 2] and passes == [2, 4]  # both robots in one pass, with two pictures each
    handle.remove()
    alone = RT2Policy(model, model.config.build_text(), dataset=trained_rt2.contract.datasets[0])
    expected = [alone.act(decode_image(frame), text).values for frame in frames[:2]]
    names = list(served._contract.action.names)
    np.testing.assert_allclose(answer[names].to_numpy()[[0, 2]], expected, atol=1e-6)
    np.testing.assert_allclose(answer[names].to_numpy()[[1, 3]], expected, atol=1e-6)


def test_a_pretrained_model_carries_what_it_was_built_from(
    opened: EpisodeStore, frames: list[bytes], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(REPOSITORY / "tests/rt_models"))
    from tests.support.rt2_folders import save_paligemma

    config = RT2VLMConfig(path=str(save_paligemma(tmp_path / "base")))
    experiment = replace(load_recipe("rt2_tiny"), model=config, co_fine_tuning=CoFineTuningConfig(robot_share=1))
    model, contract = config.build().eval(), training_contract(experiment, [opened])
    trained = TrainedModel(
        model=model, contract=contract, step=0, source="here", origin=UNTRAINED, instructions=UNKNOWN
    )
    (tmp_path / "bundle").mkdir()
    folder = write_policy(trained, tmp_path / "bundle")
    side = contract.datasets[0]
    policy = RT2Policy(model, config.build_text(), dataset=side)
    expected = policy.act(decode_image(frames[0]), text).values
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    served = MlflowPolicy()
    served.load_context(SimpleNamespace(artifacts={"policy": str(folder)}))
    np.testing.assert_allclose(ask(served, {"image": frames[0], "instruction": text})[0], expected, atol=1e-6)
    assert [file for file in folder.rglob("*") if file.is_file() and str(tmp_path).encode() in file.read_bytes()] == []
