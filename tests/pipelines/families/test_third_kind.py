"""A kind of model that is not ours: two files and a recipe in a copy of the checkout, and every command takes it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.command_line import REPOSITORY, environment

ADDED = {
    "pixel_mlp_model.py": "rt_models/pixel_mlp.py",
    "pixel_mlp_family.py": "pipelines/families/pixel_mlp.py",
    "pixel_mlp_recipe.py": "pipelines/recipes/pixel_mlp.py",
}
SESSION = """
import json, sys
from pipelines.capacity.estimate import estimate_resources
from pipelines.catalogue import load_recipe
from pipelines.cli import main
from pipelines.publishing.policy import load_policy
from pipelines.publishing.registered import load_registered
from preprocessing.store.episode_store import EpisodeStore

store = sys.argv[1]
assert main(["train", "pixel_mlp", "--data", store, "--output", "run", "--model.hidden", "16"]) == 0
assert main(["evaluate", "run", "--data", store, "--no-perturbations", "--output", "report.json"]) == 0
assert main(["register", "run", "--name", "pixel"]) == 0
opened = EpisodeStore.open(store)
frame, text = opened.read_rows(0, 0, ["image"])["image"][0].as_py(), opened.instruction_texts[0]
acted = [load_policy(source).act(frame, text) for source in ("run", "models:/pixel/1")]
served = load_registered("models:/pixel/1")([frame], [text])[0]
estimate = estimate_resources(load_recipe("pixel_mlp"), [opened])
print(json.dumps({
    "acted": [[*action.values.values()] for action in acted],
    "served": [served[name] for name in acted[0].values],
    "parameters": estimate.parameters,
}))
"""


def test_a_third_kind_of_model_is_trained_evaluated_registered_and_served(store: str, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for package in ("pipelines", "preprocessing", "rt_models", "cluster", "tuning"):
        shutil.copytree(REPOSITORY / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    for source, target in ADDED.items():
        shutil.copy(REPOSITORY / "tests/support" / source, checkout / target)
    (checkout / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SESSION, store],
        cwd=checkout / "home",
        env=environment() | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    first, again = found["acted"]
    assert first == again == found["served"] and len(first) == 11
    (evaluation,) = json.loads((checkout / "home/report.json").read_text())["evaluations"]
    assert 0 <= evaluation["token_accuracy"]["mean"] < 1
    assert found["parameters"] == (3 * 16 + 512 + 1) * 32 + (32 + 1) * 11 * 256
