"""Store, run, export and registered model of version 0.1 are read by today's code, with the answers of then."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.cli import main
from pipelines.publishing.policy import load_policy
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.integrity import require_whole
from tests.support.command_line import REPOSITORY, environment

KEPT = REPOSITORY / "tests/data/before_folders"
STORE = "stores/metaworld_sample/1.0.0/val"
ANSWERS: dict[str, Any] = json.loads((KEPT / "answers.json").read_text())

# In a process of its own: the model brings the modules of its version, by the names of ours.
AS_REGISTERED = """
import json, sys
import mlflow, numpy, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
row = {"image": sys.stdin.read(), "instruction": sys.argv[2]}
answer = model.predict(pandas.DataFrame([row])).to_dict("records")[0]
print(json.dumps({**answer, "absent": list(answer["absent"]), "code": sys.modules["pipelines.policy"].__file__}))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("before")
    for archive in KEPT.glob("*.tar.gz"):
        with tarfile.open(archive) as opened:
            opened.extractall(home, filter="data")
    return home


@pytest.fixture(scope="module")
def frames(home: Path) -> list[bytes]:
    return EpisodeStore.open(str(home / STORE)).read_rows(0, 0, ["image"])["image"].to_pylist()[:3]


def test_the_store_opens_and_is_whole(home: Path) -> None:
    store = EpisodeStore.open(str(home / STORE))
    require_whole(store)
    assert sum(shard.rows for shard in store.shards) == 19 and ANSWERS["instruction"] in store.instruction_texts
    assert store.contract.datasets[0].name == "metaworld_sample"


@pytest.mark.parametrize(("model", "path"), [("rt1", "runs/rt1"), ("rt2", "models/rt2")])
def test_run_and_export_act_as_they_did(model: str, path: str, home: Path, frames: list[bytes]) -> None:
    policy = load_policy(home / path)
    for frame, expected in zip(frames, ANSWERS[model], strict=True):
        action = policy.act(frame, ANSWERS["instruction"])
        assert list(action.values) == list(expected["values"])
        np.testing.assert_allclose([*action.values.values()], [*expected["values"].values()], atol=1e-6)  # type: ignore[arg-type]
        assert list(action.absent) == expected["absent"] and action.frames_seen == expected["frames_seen"]


def test_the_run_is_scored_as_it_was_and_resumes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    quick = ["--bootstrap-samples", "10", "--no-perturbations", "--output", "evaluation.json"]
    assert main(["evaluate", "runs/rt1", "--data", STORE, *quick]) == 0
    (measured,) = json.loads(Path("evaluation.json").read_text())["evaluations"]
    for name, expected in ANSWERS["evaluation"].items():
        assert measured[name] == (pytest.approx(expected, rel=1e-4) if isinstance(expected, dict) else expected), name
    of_then = ["--loop.global-batch", "8", "--loop.micro-batch", "4", "--engine.ema-decay", "0.5"]
    local = ["--accept", "declared_dimensions_vary", "--launch", "InProcess", "--engine", "TorchEngineConfig"]
    words = ["train", "rt1_tiny", "--data", STORE, "--output", "runs/rt1", "--resume", "--loop.steps", "3"]
    assert main([*words, *of_then, *local]) == 0
    assert sorted(folder.name for folder in Path("runs/rt1/checkpoints").glob("step-*"))[-1] == "step-00000003"


def test_the_registered_model_answers_with_the_code_that_it_carries(home: Path, frames: list[bytes]) -> None:
    variables = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", AS_REGISTERED, str(home / "registered"), ANSWERS["instruction"]]
    frame = base64.b64encode(frames[0]).decode()
    done = subprocess.run(command, input=frame, capture_output=True, text=True, cwd=home, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    answer, expected = json.loads(done.stdout.splitlines()[-1]), ANSWERS["registered"][0]
    assert Path(answer["code"]) == home / "registered/code/pipelines/policy.py"
    assert answer["absent"] == expected["absent"] and answer["frames_seen"] == expected["frames_seen"]
    for name, value in expected["values"].items():
        assert answer[name] == pytest.approx(value, abs=1e-6), name
