"""Registration against a real MLflow server: SQLite behind it, artifacts on S3, a password from the environment."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.catalogue import load_recipe
from pipelines.cli import main
from pipelines.publishing.folder import TrainedModel, write_bundle
from pipelines.publishing.instructions import Instructions
from pipelines.publishing.model_origin import ModelOrigin
from pipelines.publishing.registered import load_registered
from pipelines.training.data import training_contract
from preprocessing.store.episode_store import EpisodeStore
from tests.support.servers import Bucket, mlflow_server, s3_bucket


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server and who may use it."""

    url: str
    home: Path
    bucket: Bucket
    password: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("server")
    password = secrets.token_hex(16)
    rules = home / "auth.ini"
    rules.write_text(
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = sqlite:///{home}/auth.db\n"
        "admin_username = robot\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"  # else the password is hashed anew for each of some hundred files
    )
    with s3_bucket(home) as bucket:
        variables = bucket.environment | {
            "MLFLOW_AUTH_CONFIG_PATH": str(rules),
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        }
        with mlflow_server(home, variables, artifacts=f"{bucket.url}/artifacts", app="basic-auth") as url:
            yield Server(url=url, home=home, bucket=bucket, password=password)


@pytest.fixture
def here(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, with the environment of someone whom the server knows."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "robot")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", server.password)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    return folder


@pytest.fixture
def model(store: str, tmp_path: Path) -> str:
    experiment, opened = load_recipe("rt1_tiny"), EpisodeStore.open(store)
    folder = tmp_path / "model"
    folder.mkdir()
    contract = training_contract(experiment, [opened])
    trained = TrainedModel(
        model=experiment.model.build().eval(),
        contract=contract,
        instructions=Instructions.of_stores(contract.encoder, [opened]),
        step=0,
        source=str(folder),
        origin=ModelOrigin.from_json({"stores": [store], "git_revision": "none"}),
    )
    write_bundle(trained, folder)
    return str(folder)


def test_artifacts_lie_on_s3_and_the_model_comes_back(server: Server, here: Path, model: str, store: str) -> None:
    assert main(["register", model, "--name", "arm", "--alias", "champion"]) == 0
    assert main(["registry", "show", "arm"]) == 0
    opened = EpisodeStore.open(store)
    frame = opened.read_rows(0, 0, ["image"])["image"][0].as_py()
    (action,) = load_registered("models:/arm@champion")([frame], [opened.instruction_texts[0]])
    assert list(action)[:11] == list(opened.contract.action.names)
    stored = [
        path.relative_to(server.bucket.folder).parts[0] for path in server.bucket.folder.rglob("model.safetensors")
    ]
    assert stored == ["artifacts"]
    assert list(here.iterdir()) == [] and list((server.home / "server").iterdir()) == []


def test_a_password_in_the_address_works_and_is_nowhere_to_be_found(
    server: Server,
    here: Path,
    store: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url.replace("://", f"://robot:{server.password}@"))
    assert main(["train", "rt1_tiny", "--data", store, "--output", "run", "--loop.steps", "2", "--json"]) == 0
    assert main(["register", "run", "--name", "secret", "--alias", "champion", "--json"]) == 0
    assert main(["registry", "show", "secret", "--json"]) == 0
    assert main(["registry", "show", "nobody"]) == 2
    assert main(["doctor"]) in (0, 1)
    printed = "".join(capfd.readouterr())
    assert "trained rt1_tiny to step 2" in printed and server.url in printed
    kept = [path for folder in (here, server.bucket.folder) for path in folder.rglob("*") if path.is_file()]
    assert {"run.json", "manifest.json", "policy.json", "MLmodel"} <= {path.name for path in kept}
    for path in (*kept, server.home / "server.db"):
        assert server.password.encode() not in path.read_bytes(), path
    assert server.password not in printed


def test_a_wrong_password_is_one_sentence_without_it(
    here: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "guessed-wrong")
    assert main(["register", model, "--name", "other", "--alias", "champion"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "401" in line or "authenticated" in line
    assert "guessed-wrong" not in line and list(here.iterdir()) == []
