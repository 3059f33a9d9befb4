"""RT-2 with two cameras and a state on the real command line: trained beside a robot that has neither, evaluated,
registered, loaded, acted with, served and replayed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from pipelines.cli import main
from pipelines.publishing.policy import load_policy
from preprocessing.store.episode_store import EpisodeStore
from tests.support import two_cameras

SETTINGS = """
model:
  cameras: [image, wrist]
  state: {noise: 0.1, dropout: 0.2}
  text: {frames: 2, robot_prompt: "{cameras}: {instruction}?"}
"""
FLAGS = "--launch InProcess --engine TorchEngineConfig --co-fine-tuning.robot-share 1"
FLAGS += " --loop.steps 2 --loop.global-batch 8 --loop.micro-batch 4"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run with its stores; `registered` names it in the registry."""

    run: str
    whole: EpisodeStore
    bare: EpisodeStore
    registered: str


@pytest.fixture(scope="module", params=["scratch", "pretrained"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    recipe, own = "rt2_tiny", []
    if request.param == "pretrained":
        pytest.importorskip("transformers", reason="needs the extra vlm")
        from tests.support.rt2_folders import save_paligemma

        recipe, own = "rt2_paligemma_3b", ["--model.path", str(save_paligemma(folder / "model"))]
        own += ["--schedule.warmup-steps", "0", "--engine.precision", "fp32"]
    whole = two_cameras.store(folder / "whole")
    bare = two_cameras.store(folder / "bare", name="bare", hand=None, state=False, shards=((5, 6),))
    (folder / "settings.yaml").write_text(SETTINGS)
    words = ["--config", str(folder / "settings.yaml"), "--data", whole.root, bare.root, "--output", "run"]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        assert main(["train", recipe, *FLAGS.split(), *words, *own]) == 0
        assert main(["register", "run", "--name", request.param]) == 0
        yield Trained(run=str(folder / "run"), whole=whole, bare=bare, registered=f"models:/{request.param}/1")


def robot_of(store: EpisodeStore) -> list[tuple[dict[str, bytes], list[float]]]:
    """Frames by role, and state, of the first steps of an episode."""
    rows = store.read_episode(0, 0, ["image", "image_hand", "proprio"]).slice(0, 3).to_pylist()
    return [({"image": row["image"], "wrist": row["image_hand"]}, row["proprio"]) for row in rows]


def test_evaluation_reads_each_store_as_far_as_it_goes(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", trained.run, "--data", trained.whole.root, trained.bare.root, "--bootstrap-samples", "20"]
    assert main([*words, "--json"]) == 0
    both = json.loads(capsys.readouterr().out.splitlines()[-1])["evaluations"]
    assert [each["steps"] for each in both] == [19, 11]
    frozen, blank = (
        [each["perturbed"][kind]["scaled_error"]["mean"] for each in both] for kind in ("frozen_state", "blank_images")
    )
    assert frozen[1] == both[1]["scaled_error"]["mean"]  # it has no state that could stand still
    assert np.isfinite([*frozen, *blank]).all()


def test_the_registered_policy_acts_as_the_run_for_either_robot(trained: Trained) -> None:
    answers = []
    for source in (trained.run, trained.registered):
        policy, bare = (load_policy(source, dataset=name) for name in ("two_cameras", "bare"))
        assert (policy.cameras, bare.cameras, bare.dataset.state) == (("image", "wrist"), ("image",), None)
        seen = robot_of(trained.whole)
        acted = [policy.act(frames, "lift it", state) for frames, state in seen]
        assert [action.frames_seen for action in acted] == [1, 2, 2]
        answers.append([*acted, bare.act(seen[0][0]["image"], "lift it")])
        for frames, felt, words in (
            ({"image": seen[0][0]["image"]}, seen[0][1], "camera wrist is missing"),
            (seen[0][0], None, "state: it is missing"),
            (seen[0][0], [*seen[0][1][:3], float("nan")], "state/opening is not finite"),
        ):
            with pytest.raises(ValueError, match=words):
                policy.act(frames, "lift it", felt)
    assert answers[0] == answers[1]


def test_mlflow_answers_as_the_run(trained: Trained) -> None:
    policy = load_policy(trained.run, dataset="two_cameras")
    acted = [policy.act(frames, "lift it", state) for frames, state in robot_of(trained.whole)]
    rows = [
        {"image": frames["image"], "image_wrist": frames["wrist"], "state": state, "instruction": "lift it"}
        for frames, state in robot_of(trained.whole)
    ]
    model = mlflow.pyfunc.load_model(trained.registered)
    answer = model.predict(pd.DataFrame(rows), params={"dataset": "two_cameras"})
    for name in ("world_vector_x", "gripper_closedness_action"):
        np.testing.assert_allclose(answer[name], [action.values[name] for action in acted], rtol=1e-5)
    alone = pd.DataFrame([{"image": rows[0]["image"], "instruction": "lift it"}])
    assert model.predict(alone, params={"dataset": "bare"})["frames_seen"].tolist() == [1]
    with pytest.raises(ValueError, match="state: it is missing"):
        model.predict(alone, params={"dataset": "two_cameras"})


def test_the_served_policy_answers_every_recorded_frame_as_evaluation_does(
    trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for store, steps in ((trained.whole, 19), (trained.bare, 11)):
        assert main(["replay", trained.registered, "--data", store.root, "--json"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["agrees"] and found["steps"] == steps and found["tokens"] == 11 * steps
