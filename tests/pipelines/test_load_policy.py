"""The public way into a policy: from a run, an export and the registry, with the same answers."""

from __future__ import annotations

import base64
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.cli import main
from pipelines.publishing.folder import read_bundle, write_bundle
from pipelines.publishing.policy import load_policy
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image
from tests.support.command_line import environment, rtp_command
from tests.support.http_client import post_until_up
from tests.support.servers import free_ports


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policy")


@pytest.fixture(scope="module")
def run(store: str, home: Path) -> str:
    copied = shutil.copytree(store, home / "stores" / "/".join(Path(store).parts[-3:]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        flags = ["--output", str(home / "run"), "--loop.steps", "1"]
        in_process = ["--launch", "InProcess", "--engine", "TorchEngineConfig"]
        assert main(["train", "rt1_tiny", "--data", str(copied), *flags, *in_process]) == 0
        assert main(["export", "run", "exported"]) == 0
        assert main(["register", "run", "--name", "tiny", "--alias", "champion"]) == 0
    return str(home / "run")


@pytest.fixture(scope="module")
def frames(store: str) -> list[bytes]:
    return EpisodeStore.open(store).read_rows(0, 0, ["image"])["image"].to_pylist()[:3]


def test_run_export_and_registered_model_act_alike(
    run: str, home: Path, store: str, frames: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    opened = EpisodeStore.open(store)
    text, dataset = opened.instruction_texts[0], opened.contract.datasets[0]
    (checkpoint,) = Path(run).glob("checkpoints/*")
    answers = []
    for source in (run, checkpoint, home / "exported", "models:/tiny@champion"):
        policy = load_policy(source)
        answers.append([policy.act(decode_image(frame), text) for frame in frames])
        policy.reset()
        assert policy.act(frames[0], text) == answers[-1][0]
    assert all(answer == answers[0] for answer in answers[1:])
    first, last = answers[0][0], answers[0][-1]
    assert list(first.values) == list(opened.contract.action.names) and (first.frames_seen, last.frames_seen) == (1, 3)
    assert first.units == dict(zip(first.values, dataset.units, strict=True)) and first.units["world_vector_x"] == "m"
    has = dict(zip(first.values, dataset.action_mask, strict=True))
    assert first.absent == tuple(name for name in has if not has[name]) and first.absent
    assert all(first.values[name] == 0 for name in first.absent if name != "terminate_episode")
    assert first.classes["terminate_episode"] in ("terminate", "arm", "base")


def test_a_vector_stands_for_its_text_and_what_is_unknown_is_refused(run: str, store: str, frames: list[bytes]) -> None:
    opened, policy = EpisodeStore.open(store), load_policy(run)
    by_text = policy.act(frames[0], opened.instruction_texts[0])
    policy.reset()
    assert policy.act(frames[0], opened.embeddings[0]) == by_text
    with pytest.raises(ValueError, match=r"'sing' is not one of the \d+ .* hash-512 .*, such as '"):
        policy.act(frames[0], "sing")


def test_a_robot_of_another_rate_is_refused(run: str) -> None:
    assert load_policy(run, control_hz=10).dataset.control_hz == 10
    with pytest.raises(ValueError, match=r"acts 30 times a second, and the policy learned from \w+ at 10 Hz"):
        load_policy(run, control_hz=30)


def test_an_export_needs_no_stores_and_a_run_without_them_says_so(
    run: str, home: Path, store: str, frames: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    text = EpisodeStore.open(store).instruction_texts[0]
    (home / "stores").rename(home / "moved")
    try:
        assert load_policy(home / "exported").act(frames[0], text).frames_seen == 1
        assert caplog.text == ""
        with pytest.raises(ValueError, match="is not one of the 0 that this policy was trained on"):
            load_policy(run).act(frames[0], text)
        assert "which the model was trained on, is not there any more" in caplog.text
    finally:
        (home / "moved").rename(home / "stores")


def test_of_several_datasets_one_must_be_named(run: str, home: Path, store: str, frames: list[bytes]) -> None:
    trained = read_bundle(str(home / "exported"))
    (side,) = trained.contract.datasets
    both = replace(trained.contract, datasets=(side, replace(side, name="other")))
    (home / "two").mkdir()
    write_bundle(replace(trained, contract=both), home / "two")
    with pytest.raises(ValueError, match="name the dataset, one of metaworld_sample, other"):
        load_policy(home / "two")
    assert load_policy(home / "two", dataset="other").dataset.name == "other"
    text = EpisodeStore.open(store).instruction_texts[0]
    assert np.isfinite(list(load_policy(home / "two", dataset="other").act(frames[0], text).values.values())).all()  # type: ignore[arg-type]


def test_an_exported_folder_is_served_without_a_registry(
    run: str, home: Path, store: str, frames: list[bytes], tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    text = EpisodeStore.open(store).instruction_texts[0]
    variables = environment() | {"TMPDIR": str(tmp_path)}
    command = rtp_command("serve", home / "exported", "--port", port)
    server = subprocess.Popen(command, cwd=tmp_path, env=variables, start_new_session=True)
    try:
        row = {"image": base64.b64encode(frames[0]).decode(), "instruction": text, "robot": "arm-1"}
        answer = post_until_up(f"http://127.0.0.1:{port}/invocations", {"dataframe_records": [row]}, deadline_s=300)
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 128 + signal.SIGTERM
    action = load_policy(home / "exported").act(frames[0], text)
    (predicted,) = answer["predictions"]
    assert {name: predicted[name] for name in action.values} == dict(action.values)
    assert tuple(predicted["absent"]) == action.absent
    assert list(tmp_path.iterdir()) == []
