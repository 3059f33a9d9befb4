"""The MLflow record of a training: against SQLite, and against a real server that is killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cli import main
from pipelines.terminal.child_process import watched
from pipelines.tracking.mlflow_run import (
    RunMetrics,
    TrainingRun,
    connect,
    tracking_uri,
    with_password,
    without_password,
)
from pipelines.training.run_files import METRICS, read_metrics
from pipelines.training.step_metrics import REPORTED
from tests.support.command_line import Rtp
from tests.support.servers import MLFLOW_ALONE


def client_of(uri: str) -> Any:
    return connect(uri).MlflowClient()


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


def trained(store: str, uri: str, output: Path, *flags: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.chdir(output.parent)
        return main(["train", "rt1_tiny", "--data", store, "--output", str(output), *flags])


def runs(uri: str, output: Path) -> list[Any]:
    client = client_of(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, filter_string=f"tags.output = '{output}'"))


def test_a_training_is_one_run_however_often_it_is_resumed(store: str, uri: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    flags = ["--loop.checkpoint_every", "2", "--engine", "DeepSpeedEngineConfig"]
    assert trained(store, uri, output, "--loop.steps", "2", *flags) == 0
    assert trained(store, uri, output, "--loop.steps", "4", *flags, "--resume") == 0
    (run,) = runs(uri, output)
    assert run.info.status == "FINISHED" and run.data.params["model.num_image_tokens"] == "4"
    client = client_of(uri)
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in history) == [1, 2, 3, 4]
    assert {name for line in read_metrics(output / METRICS) for name in line} - {"step", "time"} <= set(REPORTED)
    expected = {"samples_per_s", "waiting_share", "flops_utilisation", "system/memory_percent", "loader/samples"}
    assert expected <= run.data.metrics.keys()
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"contract.json", "experiment.json", "experiment.yaml", "deepspeed.json", "metrics.jsonl"} <= artifacts


def test_a_failed_run_says_why_and_is_taken_up_again(store: str, uri: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert trained(store, uri, output, "--loop.steps", "50", "--optimizer.lr", "1e30") == 1
    (failed,) = runs(uri, output)
    assert failed.info.status == "FAILED" and "the gradient norm is" in failed.data.tags["failure"]
    assert trained(store, uri, output, "--loop.steps", "2", "--resume") == 0
    (again,) = runs(uri, output)
    assert again.info.run_id == failed.info.run_id and again.info.status == "FINISHED"
    assert "failure" not in again.data.tags


def test_a_working_folder_that_cannot_be_written_to_asks_for_another(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    words = (
        r"mlflow.db of MLflow cannot be made \(.*\): run in a folder that can be written to, or set MLFLOW_TRACKING_URI"
    )
    with pytest.raises(OSError, match=words):
        connect(f"sqlite:///{tmp_path}/runs/below/mlflow.db")


def test_a_server_that_does_not_answer_is_one_sentence(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        assert trained(store, f"http://127.0.0.1:{free_port()}", tmp_path / "run") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("rtp: MLflow at http://127.0.0.1") and not (tmp_path / "run/checkpoints").exists()


@given(
    user=st.text("ab%:", max_size=5), word=st.text("xy%:@", min_size=1, max_size=5), path=st.sampled_from(["", "/a@b"])
)
def test_a_password_is_taken_out_of_every_url_and_nothing_else(user: str, word: str, path: str) -> None:
    said = f"no answer from http://{user}:{word}@host:5000{path}, mail a@b.c"
    assert without_password(said) == f"no answer from http://host:5000{path}, mail a@b.c"
    assert without_password(without_password(said)) == without_password(said)


def test_the_address_that_is_shown_has_no_password_and_the_one_that_is_used_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host/path")
    assert tracking_uri() == "https://host/path" and with_password("https://host/path") == "https://me:secret@host/path"
    assert with_password("https://other/path") == "https://other/path"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("ftp://me:secret@host", "unsupported URI"),
        ("postgresql://me:secret@127.0.0.1:1/x", "needs the package psycopg"),
        ("sqlite:///{folder}/no.db", "file is not a database"),
        ("{folder}/mlruns", "sqlite:///mlflow.db"),
        ("http://me:secret@127.0.0.1:{port}", "Connection refused"),
        ("http://127.0.0.1:99999", "Invalid url"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_sentence_without_its_password(
    uri: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.db").write_text("a text of some length that is not what a database begins with")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(folder=tmp_path, port=free_port()))
    assert main(["registry", "show", "arm"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("rtp: MLflow at ") and words in line and "secret" not in line


# --- a real server ---


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """`mlflow server` on a port of its own, with one database through all its lives."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        where = ["--backend-store-uri", f"sqlite:///{self._folder}/server.db", "--artifacts-destination", "artifacts"]
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self._port), "--workers", "1", *where]
        # Programs beside this interpreter: the server calls uvicorn by name.
        variables = os.environ | MLFLOW_ALONE | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        output = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, cwd=self._folder, env=variables, stdout=output, stderr=output, start_new_session=True
        )
        self._watch = watched(self._process.pid)  # the tests themselves may be killed
        self._watch.__enter__()
        ends = time.monotonic() + 90
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < ends
            time.sleep(0.2)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._watch.__exit__(None, None, None)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as response:
                return response.status == 200
        except OSError:
            return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.mark.slow
def test_an_outage_neither_slows_training_nor_loses_metrics(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = TrainingRun(uri=server.uri, experiment="outage", name="run", params={"a": 1}, run_id=None)
    metrics = RunMetrics(uri=server.uri, run_id=run.run_id, output=str(tmp_path))
    metrics.add({"loss": 1.0}, 1)
    server.kill()
    began = time.perf_counter()
    for step in range(2, 200):
        metrics.add({"loss": 1.0 / step}, step)
    metrics.json({"stage": 1}, "deepspeed.json")
    assert time.perf_counter() - began < 0.2
    time.sleep(1.0)  # so that the sender meets the closed door
    server.start()
    metrics.close()
    run.finish()
    client = client_of(server.uri)
    history = client.get_metric_history(run.run_id, "loss")
    assert [point.step for point in sorted(history, key=lambda point: point.step)] == list(range(1, 200))
    assert [artifact.path for artifact in client.list_artifacts(run.run_id)] == ["deepspeed.json"]
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert not (tmp_path / "undelivered-metrics.jsonl").exists()


def test_weights_and_biases_gets_the_same_metrics(rtp: Rtp, store: str, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    output = tmp_path / "run"
    rtp("train", "rt1_tiny", "--data", store, "--output", output, "--loop.steps", 2, "--tracking.wandb_project", "tiny")
    (record,) = (output / "wandb").glob("offline-run-*/*.wandb")
    written = record.read_bytes()
    assert b"flops_utilisation" in written and b"num_image_tokens" in written
