"""The code that a registered model carries: enough to act, and nothing of the command line, Ray or the trainer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pipelines
from pipelines.catalogue import load_recipe
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.instructions import Instructions
from pipelines.publishing.mlflow_model import mlflow_model, write_policy
from pipelines.publishing.model_origin import ModelOrigin
from pipelines.publishing.policy_code import ENTRY, copy_policy_code, policy_files
from pipelines.training.data import training_contract
from preprocessing.store.episode_store import EpisodeStore
from tests.support.command_line import REPOSITORY

FOREIGN = ("tyro", "rich", "ray", "deepspeed", "optuna", "matplotlib", "cluster", "tuning")

# Run with the copied code alone on the path: a module that is neither there nor installed cannot be imported.
ALONE = """
import sys

blocked = sys.argv[3].split(",")
for name in blocked:
    sys.modules[name] = None
from types import SimpleNamespace

import numpy as np
import pandas as pd

from pipelines.publishing.mlflow_policy import MlflowPolicy

policy = MlflowPolicy()
policy.load_context(SimpleNamespace(artifacts={"policy": sys.argv[1]}))
row = {"image": np.zeros((8, 8, 3), np.uint8).tolist(), "instruction": sys.argv[2]}
answer = policy.predict(None, pd.DataFrame([row]))
packages = ("pipelines", "preprocessing", "rt_models")
ours = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] in packages]
assert all(file.startswith(sys.path[0]) for file in ours), ours
print(int(answer["frames_seen"][0]))
"""


@pytest.fixture(scope="module")
def trained(store: str) -> TrainedModel:
    experiment, opened = load_recipe("rt1_tiny"), EpisodeStore.open(store)
    return TrainedModel(
        model=experiment.model.build().eval(),
        contract=training_contract(experiment, [opened]),
        step=0,
        source="here",
        origin=ModelOrigin(git_revision="none"),
        instructions=Instructions.of_stores("hash-512", [opened]),
    )


def acted_alone(trained: TrainedModel, home: Path, blocked: str) -> subprocess.CompletedProcess[str]:
    copy_policy_code(home / "code")
    policy, text = str(write_policy(trained, home)), next(iter(trained.instructions.vectors))
    words = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(home / 'code')!r})\n{ALONE}"]
    return subprocess.run([*words, policy, text, blocked], cwd=home, capture_output=True, text=True, check=False)


def test_it_acts_with_the_copied_files_and_without_what_it_does_not_need(trained: TrainedModel, tmp_path: Path) -> None:
    done = acted_alone(trained, tmp_path, ",".join(FOREIGN))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1"]


def test_a_package_that_it_needs_is_missed(trained: TrainedModel, tmp_path: Path) -> None:
    done = acted_alone(trained, tmp_path, "mlflow")
    assert done.returncode != 0 and "No module named 'mlflow" in done.stderr


def test_the_files_are_those_of_the_policy_alone() -> None:
    files = policy_files()
    assert {ENTRY, "pipelines", "pipelines.publishing", "rt_models.rt2_vlm"} <= set(files)
    names = ("blocks.depthwise", "blocks.norm", "blocks.norm_sum", "blocks.triton", "vision.image")
    assert {f"rt_models.{name}_kernels" for name in names} <= set(files)  # which a GPU acts with
    assert not {"pipelines.cli", "pipelines.train_loop", "pipelines.config.arguments", "tuning"} & set(files)
    everything = list(Path(pipelines.__path__[0]).rglob("*.py"))
    assert sum(name.startswith("pipelines") for name in files) < len(everything) / 2
    assert all(file.is_relative_to(REPOSITORY) for file in files.values())


def test_its_requirements_name_no_command_line(trained: TrainedModel, tmp_path: Path) -> None:
    required = {line.partition("==")[0] for line in mlflow_model(trained, tmp_path)["pip_requirements"]}
    assert {"torch", "mlflow", "einops"} <= required and not required & set(FOREIGN)
