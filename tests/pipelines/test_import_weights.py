"""A JAX checkpoint on the real command line: the same weights come out, bound to a store or to none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import msgpack
import numpy as np
import pytest
import torch

from pipelines.cli import main
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.scoring import evaluate
from pipelines.publishing.folder import read_bundle
from pipelines.publishing.imported_weights import contract_of_weights
from pipelines.publishing.registered import load_registered
from pipelines.publishing.registration import register
from pipelines.publishing.trained_model import load_trained
from preprocessing.conversion.embeddings import HASH_ENCODER, USE_ENCODER
from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore
from rt_models.rt1 import RT1, RT1Config
from tests.support.command_line import SAMPLE
from tests.support.flax_files import nested
from tests.support.tiny_rt1x import as_flax, tiny_rt1x


def write_flax(file: Path, leaves: dict[str, np.ndarray]) -> None:
    def packed(value: Any) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb((list(value.shape), value.dtype.name, value.tobytes())))

    file.write_bytes(msgpack.packb({"step": 900_000, **nested(leaves)}, default=packed))


@pytest.fixture(scope="module")
def model() -> RT1:
    return tiny_rt1x()


@pytest.fixture(scope="module")
def source(model: RT1, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("rt_1_x_jax")
    write_flax(folder / "checkpoint_900000", as_flax(model))
    return str(folder)


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of one episode."""
    config = ConvertConfig(split="val", encoder="hash", workers=0, limit=1)
    return convert(str(SAMPLE), str(tmp_path_factory.mktemp("episode")), config).store


@pytest.fixture(scope="module")
def bound(source: str, episode: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("bound") / "model"
    assert main(["import-weights", source, str(out), "--data", episode, "--encoder", HASH_ENCODER]) == 0
    return str(out)


def test_the_weights_are_those_of_the_checkpoint(
    source: str, model: RT1, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import-weights", source, str(tmp_path / "new/model"), "--json"]) == 0
    account = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (account["steps"], account["image_tokens"], account["bins"], account["datasets"]) == (2, 4, 512, [])
    assert sorted(path.name for path in (tmp_path / "new").rglob("*")) == ["model", "model.safetensors", "policy.json"]
    trained = load_trained(account["output"])
    assert trained.model.config == model.config and not trained.model.training
    for name, value in model.state_dict().items():
        assert torch.equal(trained.model.state_dict()[name], value), name
    contract = trained.contract
    assert contract.id == account["contract"] and trained.source == f"{source}/checkpoint_900000"
    assert contract.action == model.spec and contract.encoder == USE_ENCODER
    assert (contract.image.height, contract.image.width) == (256, 320)


def test_bound_to_a_store_it_takes_its_conventions_and_can_be_scored(bound: str, episode: str) -> None:
    trained, store = load_trained(bound), EpisodeStore.open(episode)
    ours, theirs = trained.contract.dataset(), store.contract.dataset()
    assert (ours.units, ours.action_mask, ours.statistics) == (theirs.units, theirs.action_mask, theirs.statistics)
    assert set(ours.transform.scale) == {1.0} and set(ours.transform.offset) == {0.0}
    report = evaluate(
        trained.model, trained.contract, store, EvaluationConfig(bootstrap_samples=10, perturbations=False)
    )
    assert report.episodes == 1 and 0 <= report.token_accuracy.mean <= 1


def test_registered_it_answers_a_camera_frame(
    bound: str, episode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    registered = register(bound, name="imported")
    opened = EpisodeStore.open(episode)
    image = opened.read_rows(0, 0, ["image"])["image"][0].as_py()
    predict = load_registered(registered.model_uri, registered.tracking_uri)
    action = predict([image], [opened.instruction_texts[0]])[0]
    names = load_trained(bound).contract.action.names
    assert list(action)[: len(names)] == list(names)
    assert np.isfinite([action[name] for name in names]).all()


def test_it_carries_the_instruction_table_of_its_stores(bound: str, episode: str) -> None:
    store = EpisodeStore.open(episode)
    carried = read_bundle(bound).instructions
    assert list(carried.vectors) == list(store.instruction_texts)
    np.testing.assert_array_equal(np.stack([*carried.vectors.values()]), store.embeddings)


def test_rt1x_is_given_each_dataset_as_it_was_trained_on_it(
    model: RT1, episode: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = EpisodeStore.open(episode)
    viola = replace(store.contract, datasets=(replace(store.contract.dataset(), name="viola"),))
    both = [store, replace(store, contract=viola)]
    contract = contract_of_weights(model.spec, HASH_ENCODER, both)
    own, known = (dataset.transform for dataset in contract.datasets)
    assert (own.name, own.scale) == ("identity", (1.0,) * 11)
    assert (known.name, known.scale) == ("rt-1-x", (1.0, *[1.75] * 3, *[3.0] * 3, *[1.0] * 4))
    assert "no scaling of RT-1-X for metaworld_sample" in caplog.text and "viola" not in caplog.text
    caplog.clear()
    plain = [contract_of_weights(model.spec, HASH_ENCODER, both, "identity")]
    plain.append(contract_of_weights(RT1Config.rt1_jax().action_spec(), HASH_ENCODER, both))  # RT-1, not RT-1-X
    assert {dataset.transform.name for found in plain for dataset in found.datasets} == {"identity"}
    assert caplog.text == ""


def test_the_world_vector_limit_can_be_named(source: str, tmp_path: Path) -> None:
    assert main(["import-weights", source, str(tmp_path / "out"), "--world-vector-limit", "1.75"]) == 0
    assert load_trained(str(tmp_path / "out")).contract.action.bounds()[1][1] == 1.75


def test_source_and_out_may_be_urls(source: str, model: RT1) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(source, "/jax", recursive=True)
    assert main(["import-weights", "memory://jax", "memory://bundles/rt1x"]) == 0
    assert main(["import-weights", "memory://jax", "memory://bundles/rt1x"]) == 2
    trained = load_trained("memory://bundles/rt1x")
    assert torch.equal(trained.model.transformer.output.weight, model.transformer.output.weight)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["{source}", "{tmp}"], ["exists: give a new folder"]),
        (["", "{tmp}/out"], ["an argument is empty"]),
        (["{source}", ""], ["an argument is empty"]),
        (["{source}", "{tmp}/out", "--world-vector-limit", "0"], ["world_vector_x: needs finite low < high"]),
        (["{source}", "{tmp}/out", "--scaling", "rt1x"], ["released", "identity"]),
        (["{tmp}/nowhere", "{tmp}/out"], ["nowhere: there is no such file or folder"]),
        (["{tmp}", "{tmp}/out"], ["no flax or Orbax checkpoint in"]),
        (["{source}", "{tmp}/out", "--data", "{tmp}/none"], ["none", "rtp preprocess"]),
        (["{source}", "{tmp}/out", "--data", "{episode}"], [USE_ENCODER, HASH_ENCODER, "--encoder"]),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    flags: list[str],
    words: list[str],
    source: str,
    episode: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [flag.format(source=source, episode=episode, tmp=tmp_path) for flag in flags]
    assert main(["import-weights", *given]) == 2
    printed = capsys.readouterr().err.strip()
    assert "\n" not in printed and all(word in printed for word in words), printed
    assert list(tmp_path.iterdir()) == []


def test_a_leaf_that_is_missing_is_named(model: RT1, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaves = as_flax(model)
    del leaves["params/Transformer_0/Dense_0/bias"]
    write_flax(tmp_path / "checkpoint", leaves)
    assert main(["import-weights", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "missing leaves: params/Transformer_0/Dense_0/bias" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_bound_to_no_store_is_neither_scored_nor_registered(
    source: str, episode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["import-weights", source, "model"]) == 0
    assert main(["evaluate", "model", "--data", episode]) == 2
    assert f"bound to no dataset, so what its actions mean in {episode} is unknown" in (said := capsys.readouterr().err)
    assert f"rtp import-weights ... --data {episode}" in said and "Traceback" not in said
    assert main(["register", "model", "--name", "unbound"]) == 2
    assert "import its weights again with --data STORE" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
