"""From a checkpoint to the registry and back, as a robot would use it."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Rtp, environment, rtp_command

from pipelines.checkpoints import load_trained
from pipelines.register import register
from pipelines.serve import load_registered
from preprocessing.episode_store import EpisodeStore
from preprocessing.images import decode_image
from rt_models.policy import Policy


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def run(rtp: Rtp, store: str, home: Path) -> str:
    flags = ["--data", store, "--output", home / "run", "--loop.steps", 2]
    return rtp("train", "rt1_tiny", *flags)["output"]


@pytest.fixture(scope="module")
def registered(run: str, home: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return register(run, name="tiny", alias="champion")


def frames(store: str, count: int) -> tuple[list[bytes], list[str]]:
    opened = EpisodeStore.open(store)
    rows = opened.read_rows(0, 0, ["image", "instruction"]).slice(0, count).to_pylist()
    texts = dict(zip(opened.instruction_ids.tolist(), opened.instruction_texts, strict=True))
    return [row["image"] for row in rows], [texts[row["instruction"]] for row in rows]


def test_the_registered_policy_acts_as_the_checkpoint_does(registered: dict[str, Any], run: str, store: str) -> None:
    images, texts = frames(store, 5)
    predict = load_registered(registered["model_uri"], registered["tracking_uri"])
    actions = predict(images, texts, ["arm-1"] * 5)
    trained, opened = load_trained(run), EpisodeStore.open(store)
    dataset = trained.contract.datasets[0]
    policy = Policy(trained.model, transform=dataset.transform)
    for image, text, action in zip(images, texts, actions, strict=True):
        embedding = opened.embeddings[opened.instruction_texts.index(text)]
        expected = dataset.completed(policy.act(decode_image(image), embedding).values)
        assert list(action) == list(trained.contract.action.names)
        np.testing.assert_allclose(list(action.values()), expected, atol=1e-6)


def test_history_is_kept_for_a_named_robot_only(registered: dict[str, Any], store: str) -> None:
    images, texts = frames(store, 4)
    predict = load_registered(registered["model_uri"], registered["tracking_uri"])
    together = predict(images, texts, ["a"] * 4)
    one_by_one = [predict([image], [text], ["b"])[0] for image, text in zip(images, texts, strict=True)]
    assert together == one_by_one
    assert predict([images[0]], [texts[0]]) == together[:1]


@pytest.mark.parametrize(
    ("image", "text", "words"),
    [
        (b"no picture", "turn the faucet on", "no image"),
        (None, None, "the camera frame is 8x8"),
    ],
)
def test_what_is_no_frame_of_its_camera_is_refused(
    registered: dict[str, Any], store: str, image: bytes | None, text: str | None, words: str
) -> None:
    from preprocessing.images import encode_jpeg

    predict = load_registered(registered["model_uri"], registered["tracking_uri"])
    with pytest.raises(Exception, match=words):
        predict([image or encode_jpeg(np.zeros((8, 8, 3), np.uint8))], [text or frames(store, 1)[1][0]])


def test_nothing_lands_in_the_folder_the_command_is_run_in_but_runs(registered: dict[str, Any], home: Path) -> None:
    assert sorted(path.name for path in home.iterdir()) == ["run", "runs"]
    assert sorted(path.name for path in (home / "runs").iterdir()) == ["mlflow-artifacts", "mlflow.db"]


def test_the_version_says_where_it_comes_from(registered: dict[str, Any], run: str) -> None:
    from pipelines.tracking import connect

    version = connect(registered["tracking_uri"]).MlflowClient().get_model_version_by_alias("tiny", "champion")
    assert version.tags["contract"] == load_trained(run).contract.id
    assert version.tags["step"] == "2" and "checkpoints/step-00000002" in version.tags["checkpoint"]


def test_a_registered_model_can_be_evaluated(
    rtp: Rtp, registered: dict[str, Any], run: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--data", store, "--bootstrap-samples", 10, "--no-perturbations"]
    from_checkpoint = rtp("evaluate", run, *flags)["evaluations"]
    from pipelines.evaluate import main

    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered["tracking_uri"])
    assert main([registered["model_uri"], *map(str, flags)])["evaluations"] == from_checkpoint


def test_rtp_serve_answers_over_http_on_loopback(registered: dict[str, Any], store: str, tmp_path: Path) -> None:
    images, texts = frames(store, 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = environment() | {"MLFLOW_TRACKING_URI": registered["tracking_uri"], "PATH": "/usr/bin:/bin"}
    command = rtp_command("serve", registered["model_uri"], "--port", port)
    server = subprocess.Popen(command, cwd=tmp_path, env=variables, start_new_session=True)
    try:
        row = [base64.b64encode(images[0]).decode(), texts[0]]
        body = {"dataframe_split": {"columns": ["image", "instruction"], "data": [row]}}
        answer = post_until_up(f"http://127.0.0.1:{port}/invocations", body, deadline_s=90)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
    assert answer["predictions"] == load_registered(registered["model_uri"], registered["tracking_uri"])(images, texts)


def post_until_up(url: str, body: dict[str, Any], *, deadline_s: float) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    ends = time.monotonic() + deadline_s
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except OSError:
            assert time.monotonic() < ends
            time.sleep(0.5)
