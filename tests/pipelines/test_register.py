"""From a checkpoint to the registry and back, as a robot would use it."""

from __future__ import annotations

import base64
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipelines.cli import main as rtp_main
from pipelines.evaluation.predictions import predict_store
from pipelines.publishing.folder import write_bundle
from pipelines.publishing.registered import load_registered
from pipelines.publishing.registration import PromotionPolicy, Registration, register
from pipelines.publishing.trained_model import load_trained
from pipelines.tracking.mlflow_run import connect
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image
from rt_models.action_tokens import decode
from rt_models.control.rt1_policy import RT1Policy
from tests.support import clean_environment
from tests.support.command_line import REPOSITORY, Rtp, environment, rtp_command
from tests.support.fork_server import fork_server
from tests.support.http_client import post_until_up


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def run(rtp_here: Rtp, store: str, home: Path) -> str:
    flags = ["--data", store, "--output", home / "run", "--loop.steps", 2]
    return rtp_here("train", "rt1_tiny", *flags)["output"]


@pytest.fixture(scope="module")
def registered(run: str, home: Path) -> Registration:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return register(run, name="tiny", alias="champion")


def frames(store: str, count: int) -> tuple[list[bytes], list[str]]:
    opened = EpisodeStore.open(store)
    rows = opened.read_rows(0, 0, ["image", "instruction"]).slice(0, count).to_pylist()
    texts = dict(zip(opened.instruction_ids.tolist(), opened.instruction_texts, strict=True))
    return [row["image"] for row in rows], [texts[row["instruction"]] for row in rows]


def test_the_registered_policy_acts_as_the_checkpoint_does(registered: Registration, run: str, store: str) -> None:
    images, texts = frames(store, 5)
    predict = load_registered(registered.model_uri, registered.tracking_uri)
    actions = predict(images, texts, ["arm-1"] * 5)
    trained, opened = load_trained(run), EpisodeStore.open(store)
    dataset = trained.contract.datasets[0]
    policy = RT1Policy(trained.model, dataset=dataset)
    for image, text, action in zip(images, texts, actions, strict=True):
        embedding = opened.embeddings[opened.instruction_texts.index(text)]
        expected = policy.act(decode_image(image), embedding)
        assert list(action)[:11] == list(trained.contract.action.names)
        np.testing.assert_allclose(list(action.values())[:11], expected.values, atol=1e-6)
        assert action["frames_seen"] == expected.frames_seen and action["absent"] == list(expected.absent)


def test_history_is_kept_for_each_robot(registered: Registration, store: str) -> None:
    images, texts = frames(store, 4)
    predict = load_registered(registered.model_uri, registered.tracking_uri)
    together = predict(images, texts, ["a"] * 4)
    one_by_one = [predict([image], [text], ["b"])[0] for image, text in zip(images, texts, strict=True)]
    assert together == one_by_one
    assert predict(images, texts) == together


def test_rows_of_one_call_may_say_different_things(registered: Registration, store: str) -> None:
    """Some of a robot, some reset, some by instruction, some by embedding: JSON records leave out fields."""
    images, texts = frames(store, 4)
    vector = EpisodeStore.open(store).embeddings[0].tolist()
    model = connect(registered.tracking_uri).pyfunc.load_model(registered.model_uri)
    rows: list[dict[str, Any]] = [
        {"image": images[0], "instruction": texts[0], "robot": "mixed"},
        {"image": images[1], "embedding": vector, "stateless": True},
        {"image": images[2], "instruction": texts[2], "robot": "mixed", "reset": True},
        {"image": images[3], "instruction": texts[3], "stateless": True},
    ]
    together = model.predict(pd.DataFrame(rows)).to_dict("records")
    alone = [model.predict(pd.DataFrame([row])).to_dict("records")[0] for row in rows]
    assert together[1:] == alone[1:]  # the first has a history by now


def test_what_is_no_frame_is_refused(registered: Registration, store: str) -> None:
    predict = load_registered(registered.model_uri, registered.tracking_uri)
    with pytest.raises(ValueError, match="row 0: image cannot be decoded"):
        predict([b"no picture"], frames(store, 1)[1])


def test_a_misspelt_parameter_is_refused(registered: Registration, store: str) -> None:
    images, texts = frames(store, 1)
    model = connect(registered.tracking_uri).pyfunc.load_model(registered.model_uri)
    row = pd.DataFrame({"image": images, "instruction": texts})
    with pytest.raises(ValueError, match="there is no parameter 'unnorm_key': this policy takes dataset, contract"):
        model.predict(row, params={"unnorm_key": "metaworld_sample"})
    assert len(model.predict(row, params={"dataset": "metaworld_sample"})) == 1


def test_the_path_of_imports_stays_as_it_was(registered: Registration) -> None:
    """MLflow puts a model's own copy of our code first: a child process would import half of it and half of ours."""
    before = list(sys.path)
    connect(registered.tracking_uri).pyfunc.load_model(registered.model_uri)
    assert sys.path == before
    assert not [entry for entry in before if entry.endswith("/code")]  # nor has registering left one


def test_nothing_lands_in_the_folder_the_command_is_run_in_but_runs(registered: Registration, home: Path) -> None:
    assert sorted(path.name for path in home.iterdir()) == ["run", "runs"]
    assert sorted(path.name for path in (home / "runs").iterdir()) == ["mlflow-artifacts", "mlflow.db"]


def test_no_file_of_a_version_names_a_folder_of_this_machine(registered: Registration, run: str, home: Path) -> None:
    mlflow = connect(registered.tracking_uri)
    folder = mlflow.artifacts.download_artifacts(artifact_uri=registered.model_uri, dst_path=str(home.parent / "copy"))
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != "registered_model_meta"]
    here = [str(place).encode() for place in (home, REPOSITORY, Path(run), Path.home())]
    assert [(file, place) for file in files for place in here if place in file.read_bytes()] == []
    names = {path.relative_to(folder).as_posix() for path in files}
    assert {
        "mlflow_policy.py",
        "requirements.txt",
        "code/rt_models/rt1.py",
        "artifacts/policy/model.safetensors",
    } <= names
    assert [name for name in names if name.endswith((".pkl", ".pyc", ".pt"))] == []


def served_by(python: Path, registered: Registration, store: str, folder: Path) -> dict[str, Any]:
    """What the model answers on the store's first episode, in another environment and another folder."""
    images, texts = frames(store, len(expected_actions(registered, store)))
    asked = folder / "asked.json"
    encoded = [base64.b64encode(image).decode() for image in images]
    asked.write_text(json.dumps({"model": registered.model_uri, "images": encoded, "texts": texts}))
    variables = {"MLFLOW_TRACKING_URI": registered.tracking_uri, "HOME": str(folder), "PATH": "/usr/bin:/bin"}
    command = [python, "-I", "-c", clean_environment.PREDICT, asked]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def _evaluated(run: str, store: str) -> np.ndarray:
    trained, opened = load_trained(run), EpisodeStore.open(store)
    dataset = trained.contract.datasets[0]
    predicted = predict_store(trained.model, trained.contract, opened, batch=64)
    first = predicted.episode_N == predicted.episode_N[0]
    values = decode(torch.from_numpy(predicted.tokens_NA[first]), trained.model.spec).numpy()
    return dataset.completed(dataset.transform.invert(values), trained.contract.action)


def expected_actions(registered: Registration, store: str) -> np.ndarray:
    """The actions that `rtp evaluate` scores on the store's first episode."""
    client = connect(registered.tracking_uri).MlflowClient()
    return _evaluated(client.get_model_version("tiny", registered.version).tags["checkpoint"], store)


def requirements(registered: Registration, folder: Path) -> Path:
    mlflow = connect(registered.tracking_uri)
    uri = f"runs:/{registered.run_id}/policy/requirements.txt"
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))


def test_with_nothing_but_its_requirements_it_acts_as_evaluated(
    registered: Registration, store: str, tmp_path: Path
) -> None:
    python = clean_environment.linked(requirements(registered, tmp_path), tmp_path / "env")
    answer = served_by(python, registered, store, tmp_path)
    actions = np.array([list(action.values())[:11] for action in answer["actions"]])
    np.testing.assert_allclose(actions, expected_actions(registered, store), atol=1e-6)
    assert answer["foreign"] == [] and str(REPOSITORY) not in answer["path"]


@pytest.mark.slow
def test_in_an_environment_that_pip_made_it_acts_as_evaluated(
    registered: Registration, store: str, tmp_path: Path
) -> None:
    python = clean_environment.installed(requirements(registered, tmp_path), tmp_path / "env")
    answer = served_by(python, registered, store, tmp_path)
    actions = np.array([list(action.values())[:11] for action in answer["actions"]])
    np.testing.assert_allclose(actions, expected_actions(registered, store), atol=1e-6)


def test_the_version_says_where_it_comes_from(
    registered: Registration, run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered.tracking_uri)
    assert rtp_main(["registry", "show", "tiny", "--json"]) == 0
    printed = capsys.readouterr().out
    version = json.loads(printed.splitlines()[-1])["versions"][-1]
    trained = load_trained(run)
    assert version["aliases"] == ["champion"] and version["step"] == 2
    assert version["contract"] == trained.contract.id
    assert version["git_revision"] == trained.origin.git_revision
    run_of_version = connect(registered.tracking_uri).MlflowClient().get_run(version["run"]["id"])
    assert run_of_version.data.tags["continues_run"] == trained.origin.mlflow_run_id  # of another database
    assert "checkpoints/step-00000002" in version["checkpoint"]
    (store,) = version["stores"]
    assert store["dataset"] == "metaworld_sample/1.0.0/val" and store["records"] == 24
    assert all(word in printed for word in (store["fingerprint"], store["source"], "@champion"))


@pytest.fixture(scope="module")
def saying(run: str, store: str, home: Path) -> Callable[[int], str]:
    """A model that answers every question with the n-th commonest token of the store, as a folder to register."""
    trained, opened = load_trained(run), EpisodeStore.open(store)
    predicted = predict_store(trained.model, trained.contract, opened, batch=64)
    tokens, counts = np.unique(predicted.target_tokens_NA[:, 1:4], return_counts=True)  # world_vector: always varies
    commonest_first = tokens[np.argsort(-counts, kind="stable")]

    @functools.cache
    def make(rank: int) -> str:
        output = trained.model.transformer.output
        with torch.no_grad():
            output.weight.zero_()
            output.bias.zero_()
            output.bias[int(commonest_first[rank])] = 50
        folder = home / f"saying-{rank}"
        folder.mkdir()
        write_bundle(replace(trained, source=f"rank {rank}"), folder)
        return str(folder)

    return make


@pytest.fixture
def registry_of_its_own(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    return uri


def test_a_worse_model_never_becomes_champion(
    saying: Callable[[int], str], store: str, registry_of_its_own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def rtp(*words: str) -> tuple[int, dict[str, Any], str]:
        code = rtp_main([*words, "--json"])
        out = capsys.readouterr().out
        return code, json.loads(out.splitlines()[-1]), out

    guarded = ("--name", "arm", "--alias", "champion", "--data", store, "--gate", "token_accuracy>=champion")
    code, first, _ = rtp("register", saying(2), *guarded)
    assert (code, first["promoted"], first["holder"]) == (0, True, "1")
    code, worse, printed = rtp("register", saying(9), *guarded)
    assert (code, worse["promoted"], worse["holder"]) == (1, False, "1")
    assert "arm@champion stays with version 1" in printed and "(version 1): failed" in worse["gates"][0]
    code, better, _ = rtp("register", saying(0), *guarded, "--gate", "token_accuracy>0.01")
    assert (code, better["promoted"], better["holder"]) == (0, True, "3")
    code, impossible, _ = rtp("register", saying(0), *guarded[:-2], "--gate", "token_accuracy>1")
    assert (code, impossible["holder"]) == (1, "3")
    client = connect(registry_of_its_own).MlflowClient()
    tags = client.get_model_version("arm", "2").tags
    assert tags["champion.gates"] == worse["gates"][0] and "stays with version 1" in tags["champion.decision"]
    code, back, _ = rtp("registry", "rollback", "arm")
    assert (code, back["version"]) == (0, "1")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--alias", "champion", "--gate", "token_accuracy>=1"], "give --data STORE"),
        (["--gate", "token_accuracy>=1", "--data", "STORE"], "give --alias"),
        (["--alias", "champion", "--gate", "better", "--data", "STORE"], "is no condition"),
        (["--alias", "champion", "--gate", "tokn_accuracy>=1", "--data", "STORE"], "did you mean 'token_accuracy'"),
        (["--alias", "latest"], "--alias 'latest' cannot be an alias"),
        (["--name", "a/b"], "--name 'a/b' cannot name a model"),
    ],
)
def test_a_gate_that_cannot_be_judged_registers_nothing(
    flags: list[str],
    words: str,
    saying: Callable[[int], str],
    store: str,
    registry_of_its_own: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [store if flag == "STORE" else flag for flag in flags]
    assert rtp_main(["register", saying(0), "--name", "arm", *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert connect(registry_of_its_own).MlflowClient().search_registered_models() == []


def test_a_champion_that_cannot_be_judged_is_named_and_nothing_is_registered(
    saying: Callable[[int], str], store: str, registry_of_its_own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client = connect(registry_of_its_own).MlflowClient()
    client.create_registered_model("arm")
    client.create_model_version("arm", "file:///nowhere")
    client.set_registered_model_alias("arm", "champion", "1")
    assert rtp_main(["register", saying(0), "--name", "arm", "--alias", "champion", "--data", store]) == 2
    assert "version 1 of arm, which the alias points at, cannot be compared with" in capsys.readouterr().err
    assert len(client.search_model_versions("name = 'arm'")) == 1


def test_a_store_of_another_contract_is_refused_before_anything_is_registered(
    saying: Callable[[int], str], store: str, registry_of_its_own: str, tmp_path: Path
) -> None:
    other = tmp_path / "metaworld_sample/1.0.0/val"
    shutil.copytree(store, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["contract"]["encoder"] = "another-encoder"
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"encoder: the model has hash-512, .* has another-encoder"):
        register(saying(0), name="arm", alias="champion", guard=PromotionPolicy.of("champion", (), (str(other),)))
    assert connect(registry_of_its_own).MlflowClient().search_registered_models() == []


def register_guarded(checkpoint: str, store: str, uri: str, results: Any) -> None:
    os.environ["MLFLOW_TRACKING_URI"] = uri
    guard = PromotionPolicy.of("champion", ("token_accuracy>=champion",), (store,))
    results.put(register(checkpoint, name="arm", alias="champion", guard=guard))


def test_two_registrations_at_once_leave_the_better_one(
    saying: Callable[[int], str], store: str, registry_of_its_own: str
) -> None:
    connect(registry_of_its_own).MlflowClient().search_registered_models()  # the database is made before
    server = fork_server()
    results = server.Queue()
    arguments = [(saying(rank), store, registry_of_its_own, results) for rank in (0, 9)]
    both = [server.Process(target=register_guarded, args=each) for each in arguments]
    for process in both:
        process.start()
    registrations = [results.get(timeout=300) for _ in both]
    for process in both:
        process.join(30)
        assert process.exitcode == 0
    client = connect(registry_of_its_own).MlflowClient()
    model = client.get_registered_model("arm")
    champion = client.get_model_version("arm", model.aliases["champion"])
    assert sorted(each.version for each in registrations) == ["1", "2"]
    assert champion.tags["checkpoint"] == "rank 0"


def test_a_registered_model_can_be_evaluated(
    rtp_here: Rtp, registered: Registration, run: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--data", store, "--bootstrap-samples", 10, "--no-perturbations"]
    (from_checkpoint,) = rtp_here("evaluate", run, *flags)["evaluations"]
    from pipelines.evaluate import main

    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered.tracking_uri)
    (from_registry,) = main([registered.model_uri, *map(str, flags)])["evaluations"]
    rounded = {"diagnosis", "negative_log_likelihood"}  # probabilities: the ninth digit follows the number of threads
    assert from_registry.keys() == from_checkpoint.keys() > rounded
    assert {k: v for k, v in from_registry.items() if k not in rounded} == {
        k: v for k, v in from_checkpoint.items() if k not in rounded
    }


def test_rtp_serve_answers_over_http_until_it_is_ended(registered: Registration, store: str, tmp_path: Path) -> None:
    """The registry's model is answered as MLflow would answer it."""
    images, texts = frames(store, 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = environment() | {"MLFLOW_TRACKING_URI": registered.tracking_uri, "PATH": "/usr/bin:/bin"}
    command = rtp_command("serve", registered.model_uri, "--port", port)
    server = subprocess.Popen(command, cwd=tmp_path, env=variables, start_new_session=True)
    try:
        row = [base64.b64encode(images[0]).decode(), texts[0], "arm-1"]
        body = {"dataframe_split": {"columns": ["image", "instruction", "robot"], "data": [row]}}
        answer = post_until_up(f"http://127.0.0.1:{port}/invocations", body, deadline_s=300)
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    assert code == 128 + signal.SIGTERM
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    assert answer["predictions"] == load_registered(registered.model_uri, registered.tracking_uri)(images, texts)
