"""What a served policy takes, what it refuses and in which words, and how long it remembers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel
from torch import nn

from pipelines.catalogue import load_recipe
from pipelines.publishing import mlflow_policy
from pipelines.publishing.folder import TrainedModel, read_bundle, write_bundle
from pipelines.publishing.inference import TOGETHER
from pipelines.publishing.instructions import Instructions
from pipelines.publishing.mlflow_model import signature, write_policy
from pipelines.publishing.mlflow_policy import MlflowPolicy
from pipelines.publishing.model_origin import ModelOrigin
from pipelines.training.data import training_contract
from preprocessing.store.episode_store import EpisodeStore
from rt_models.blocks.linear import ZeroLinear
from rt_models.rt1 import RT1

UNTRAINED, UNKNOWN = ModelOrigin(git_revision="none"), Instructions("hash-512", {})


@pytest.fixture(scope="module")
def opened(store: str) -> EpisodeStore:
    return EpisodeStore.open(store)


@pytest.fixture(scope="module")
def folder(opened: EpisodeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a registered model carries, of a model that was never trained."""
    experiment = load_recipe("rt1_tiny")
    trained = TrainedModel(
        model=experiment.model.build().eval(),
        contract=training_contract(experiment, [opened]),
        step=0,
        source="here",
        origin=UNTRAINED,
        instructions=Instructions.of_stores("hash-512", [opened]),
    )
    return write_policy(trained, tmp_path_factory.mktemp("policy"))


@pytest.fixture
def policy(folder: Path) -> MlflowPolicy:
    policy = MlflowPolicy()
    policy.load_context(SimpleNamespace(artifacts={"policy": str(folder)}))
    return policy


def ask(policy: MlflowPolicy, *rows: dict[str, Any], **params: str) -> np.ndarray:
    answer = policy.predict(None, pd.DataFrame(list(rows)), params)
    return answer[list(policy._contract.action.names)].to_numpy()


@pytest.fixture(scope="module")
def frames(opened: EpisodeStore) -> list[bytes]:
    return opened.read_rows(0, 0, ["image"])["image"].to_pylist()[:4]


@pytest.fixture(scope="module")
def text(opened: EpisodeStore) -> str:
    return opened.instruction_texts[0]


def test_an_embedding_stands_for_its_instruction(
    policy: MlflowPolicy, opened: EpisodeStore, frames: list[bytes], text: str
) -> None:
    vector = opened.embeddings[0]
    alone = {"image": frames[0], "stateless": True}
    said = ({"instruction": text}, {"embedding": vector}, {"embedding": vector.tolist()})
    by_text, by_vector, by_list = ask(policy, *(alone | words for words in said))
    np.testing.assert_array_equal(by_text, by_vector)
    np.testing.assert_array_equal(by_text, by_list)


@pytest.mark.parametrize("row", [{}, {"instruction": None}, {"instruction": " "}, {"instruction": float("nan")}])
def test_a_missing_instruction_is_refused(policy: MlflowPolicy, frames: list[bytes], row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="row 0: there is no instruction: give a text"):
        ask(policy, {"image": frames[0], **row})


def test_an_embedding_of_another_width_is_refused(policy: MlflowPolicy, frames: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"must be 512 finite numbers, got float64 \(3,\)"):
        ask(policy, {"image": frames[0], "embedding": [0.0, 0.0, 0.0]})


def test_what_no_encoder_knows_is_refused_with_what_is_known(policy: MlflowPolicy, frames: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"row 0: instruction 'sing' is not one of the \d+ .*hash-512.*such as '"):
        ask(policy, {"image": frames[0], "instruction": "sing"})


# --- history ---


def test_a_robot_has_a_history_until_it_is_reset(policy: MlflowPolicy, frames: list[bytes], text: str) -> None:
    rows = [{"image": frame, "instruction": text, "robot": "a"} for frame in frames[:3]]
    first, _, third = ask(policy, *rows)
    again = ask(policy, rows[0] | {"reset": True})[0]
    np.testing.assert_array_equal(again, first)
    after = ask(policy, *rows[1:])[-1]
    np.testing.assert_array_equal(after, third)


@pytest.mark.parametrize("reset", ["false", 0, [True]])
def test_a_reset_that_is_neither_true_nor_false_is_refused(
    policy: MlflowPolicy, frames: list[bytes], text: str, reset: Any
) -> None:
    with pytest.raises(ValueError, match="row 0: reset must be true or false, got"):
        ask(policy, {"image": frames[0], "instruction": text, "robot": "a", "reset": reset})


def test_another_robot_does_not_disturb(policy: MlflowPolicy, frames: list[bytes], text: str) -> None:
    alone = [ask(policy, {"image": frame, "instruction": text, "robot": "a"})[0] for frame in frames]
    mixed = []
    for frame, other in zip(frames, reversed(frames), strict=True):
        rows = ({"image": image, "instruction": text, "robot": name} for image, name in ((frame, "b"), (other, "c")))
        mixed.append(ask(policy, *rows)[0])
    np.testing.assert_array_equal(alone, mixed)


def test_a_bad_row_leaves_every_history_as_it_was(policy: MlflowPolicy, frames: list[bytes], text: str) -> None:
    rows = [{"image": frame, "instruction": text, "robot": "a"} for frame in frames[:2]]
    expected = ask(policy, *rows, {"image": frames[2], "instruction": text, "robot": "a"})[-1]
    policy._robots.clear()
    ask(policy, rows[0])
    with pytest.raises(ValueError, match="row 1: "):
        ask(policy, rows[1], {"image": b"", "instruction": text, "robot": "a"})
    repeated = ask(policy, rows[1], {"image": frames[2], "instruction": text, "robot": "a"})[-1]
    np.testing.assert_array_equal(repeated, expected)


def test_histories_are_bounded_and_the_stalest_goes_first(
    policy: MlflowPolicy, frames: list[bytes], text: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(mlflow_policy, "MAX_ROBOTS", 2)
    for robot in ("a", "b", "a", "c"):
        ask(policy, {"image": frames[0], "instruction": text, "robot": robot})
    assert [robot for robot, _ in policy._robots] == ["a", "c"]
    assert "the history of 'b' is forgotten" in caplog.text


def seen(answer: pd.DataFrame) -> list[int]:
    return answer["frames_seen"].tolist()


def test_in_python_rows_without_a_robot_are_one_robot_s(policy: MlflowPolicy, frames: list[bytes], text: str) -> None:
    rows = [{"image": frame, "instruction": text} for frame in frames[:2]]
    named = policy.predict(None, pd.DataFrame([row | {"robot": "a"} for row in rows]))
    nameless = [policy.predict(None, pd.DataFrame([row])) for row in rows]
    pd.testing.assert_frame_equal(pd.concat(nameless, ignore_index=True), named)
    assert seen(named) == [1, 2]
    assert seen(policy.predict(None, pd.DataFrame([rows[0] | {"stateless": True}]))) == [1]
    assert seen(policy.predict(None, pd.DataFrame(rows[:1]))) == [3]  # the answer before left the history as it was


def test_over_http_a_row_says_whose_history_it_continues(
    policy: MlflowPolicy, frames: list[bytes], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    row = {"image": frames[0], "instruction": text}
    with pytest.raises(
        ValueError, match=r'row 0: this policy looks at the last \d frames.*"robot": "arm-1".*stateless'
    ):
        ask(policy, row)
    ask(policy, row | {"robot": "arm-1"}, row | {"stateless": True})
    with pytest.raises(ValueError, match="row 0: stateless is an answer without a history, and robot 'a' has one"):
        ask(policy, row | {"robot": "a", "stateless": True})


def test_robots_share_the_weights(policy: MlflowPolicy, frames: list[bytes], text: str) -> None:
    """A copy for each of 256 robots would take 36 GB of an RT-1."""
    for robot in range(256):
        policy._history(str(robot), policy._contract.datasets[0])
    ask(policy, *({"image": frames[0], "instruction": text, "robot": str(robot)} for robot in range(4)))
    robots = list(policy._robots.values())
    assert len(robots) == 256
    storages = [{p.data_ptr() for p in each.model.parameters()} for each in robots]  # type: ignore[attr-defined]
    assert all(one == storages[0] for one in storages)
    weights = sum(p.nbytes for p in robots[0].model.parameters())  # type: ignore[attr-defined]
    history = vars(robots[-1]._history)  # type: ignore[attr-defined]
    assert sum(part.untyped_storage().nbytes() for part in history.values() if part is not None) < weights / 20


def test_datasets_share_the_weights_too(folder: Path, tmp_path: Path) -> None:
    policy = two_datasets(folder, tmp_path)
    one, other = (policy._history("a", dataset) for dataset in policy._contract.datasets)
    assert one.model is other.model  # type: ignore[attr-defined]


def test_rows_of_one_call_are_answered_as_in_calls_of_their_own(
    policy: MlflowPolicy, frames: list[bytes], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Robots that take turns, several frames of one robot, an episode that begins, and rows without a history."""
    passes: list[int] = []
    encode = RT1.image_tokens
    monkeypatch.setattr(RT1, "image_tokens", lambda self, x, e: (passes.append(len(x)), encode(self, x, e))[1])
    names = ("a", "b", None, "a", "c", "b", None, "a")
    rows = [
        {"image": frames[n % 4], "instruction": text, **({"stateless": True} if name is None else {"robot": name})}
        for n, name in enumerate(names)
    ]
    rows[5]["reset"] = True
    together = policy.predict(None, pd.DataFrame(rows))
    assert passes == [5, 2, 1]
    policy._robots.clear()
    alone = [policy.predict(None, pd.DataFrame([row])) for row in rows]
    pd.testing.assert_frame_equal(together, pd.concat(alone, ignore_index=True), rtol=1e-5, atol=1e-6)
    assert seen(together) == [1, 1, 1, 2, 1, 1, 1, 3]


def test_no_pass_holds_more_robots_than_the_largest_graph(
    policy: MlflowPolicy, frames: list[bytes], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    encode = RT1.image_tokens
    monkeypatch.setattr(RT1, "image_tokens", lambda self, x, e: (passes.append(len(x)), encode(self, x, e))[1])
    ask(policy, *({"image": frames[0], "instruction": text, "stateless": True} for _ in range(TOGETHER + 3)))
    assert passes == [TOGETHER, 3]


def test_a_server_without_the_gpu_that_it_is_told_of_does_not_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RTP_DEVICE", "cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"--device cuda: .*; give --device cpu, or auto"):
        MlflowPolicy().load_context(SimpleNamespace(artifacts={"policy": str(folder)}))


def test_in_bf16_the_weights_are_cast_once(
    folder: Path, frames: list[bytes], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RTP_PRECISION", "bf16")
    served = MlflowPolicy()
    served.load_context(SimpleNamespace(artifacts={"policy": str(folder)}))
    assert np.isfinite(ask(served, {"image": frames[0], "instruction": text})).all()
    (robot,) = served._robots.values()
    kinds = {type(part): part.weight.dtype for part in robot.model.modules() if isinstance(part, nn.Linear | nn.Conv2d)}  # type: ignore[attr-defined]
    assert kinds.pop(ZeroLinear) == torch.float32  # FiLM, which autocast does not cast either
    assert kinds and set(kinds.values()) == {torch.bfloat16}


# --- what a call may name ---


def two_datasets(folder: Path, tmp_path: Path) -> MlflowPolicy:
    """A policy of two robots, the second's actions 275 times the first's."""
    trained = read_bundle(folder)
    (small,) = trained.contract.datasets
    scale = tuple(value / 275 for value in small.transform.scale)
    large = replace(small, name="large", transform=replace(small.transform, scale=(1.0, *scale[1:])))
    write_bundle(replace(trained, contract=replace(trained.contract, datasets=(small, large))), tmp_path)
    policy = MlflowPolicy()
    policy.load_context(SimpleNamespace(artifacts={"policy": str(tmp_path)}))
    return policy


def as_mlflow_calls(policy: MlflowPolicy, folder: Path) -> PyFuncModel:
    """MLflow's wrapper, which fills in the signature's defaults and drops whatever else a caller gives."""
    trained = read_bundle(folder)
    model = Model(signature=signature(trained))
    model.add_flavor("python_function", loader_module="mlflow.pyfunc.model")
    impl = SimpleNamespace(predict=lambda data, params=None: policy.predict(None, data, params))
    return PyFuncModel(model_meta=model, model_impl=impl)


def test_of_several_datasets_none_is_guessed(folder: Path, tmp_path: Path, frames: list[bytes], text: str) -> None:
    model = as_mlflow_calls(two_datasets(folder, tmp_path), tmp_path)
    row = pd.DataFrame([{"image": frames[0], "instruction": text}])
    for params in (None, {}, {"dataset": ""}):
        with pytest.raises(ValueError, match="name the dataset, one of metaworld_sample, large"):
            model.predict(row, params=params)
    small, large = (model.predict(row, params={"dataset": d})["world_vector_x"] for d in ("metaworld_sample", "large"))
    np.testing.assert_allclose(large, small * 275, rtol=1e-5)


@pytest.mark.parametrize("params", [{"unnorm_key": "large"}, {"dataset": "metaworld_sample", "Contract": "x"}])
def test_an_unknown_parameter_is_an_error_through_mlflow_too(
    policy: MlflowPolicy, folder: Path, frames: list[bytes], text: str, params: dict[str, str]
) -> None:
    row, model = pd.DataFrame([{"image": frames[0], "instruction": text}]), as_mlflow_calls(policy, folder)
    assert len(model.predict(row)) == 1
    name = list(params)[-1]
    for call in (lambda: model.predict(row, params=params), lambda: policy.predict(None, row, params)):
        with pytest.raises(ValueError, match=f"there is no parameter '{name}': this policy takes dataset, contract"):
            call()


def test_an_unknown_column_is_an_error_through_mlflow_too(
    policy: MlflowPolicy, folder: Path, frames: list[bytes], text: str
) -> None:
    row = pd.DataFrame([{"image": frames[0], "instruction": text, "robot_id": "a"}])
    for call in (lambda: as_mlflow_calls(policy, folder).predict(row), lambda: policy.predict(None, row)):
        with pytest.raises(ValueError, match="there is no column 'robot_id': this policy takes image, instruction"):
            call()


def test_the_reason_of_a_refusal_stands_alone(policy: MlflowPolicy, frames: list[bytes]) -> None:
    """MLflow's server writes the request's rows before the message of an exception, and a stack trace after others."""
    with pytest.raises(MlflowException) as caught:
        ask(policy, {"image": frames[0], "instruction": ""})
    reason = caught.value.message
    caught.value.message = f"Failed to predict data ... {reason}"
    assert json.loads(caught.value.serialize_as_json())["message"] == reason and reason.startswith("row 0: there is no")
    assert caught.value.get_http_status_code() == 400


def test_a_caller_that_was_built_for_another_contract_is_refused(
    policy: MlflowPolicy, frames: list[bytes], text: str
) -> None:
    row = {"image": frames[0], "instruction": text}
    ask(policy, row, contract=policy._contract.id)
    with pytest.raises(
        ValueError, match=f"contract 0123456789abcdef was asked for, this policy has {policy._contract.id}"
    ):
        ask(policy, row, contract="0123456789abcdef")
    with pytest.raises(ValueError, match="dataset 'kuka' is not in this contract: name one of metaworld_sample"):
        ask(policy, row, dataset="kuka")


def test_absent_dimensions_are_listed_and_classes_named(policy: MlflowPolicy, frames: list[bytes], text: str) -> None:
    (row,) = policy.predict(None, pd.DataFrame([{"image": frames[0], "instruction": text}])).to_dict("records")
    mask = policy._contract.datasets[0].action_mask
    absent = [name for name, has in zip(policy._contract.action.names, mask, strict=True) if not has]
    assert row["absent"] == absent and "base_displacement_vector_x" in absent
    assert all(row[name] == 0 for name in absent if name != "terminate_episode")
    assert row["terminate_episode_class"] == ("terminate", "arm", "base")[int(row["terminate_episode"])]
    assert list(row)[:11] == list(policy._contract.action.names)
