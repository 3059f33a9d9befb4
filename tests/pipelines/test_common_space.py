"""A 7-D and an 11-D robot trained together through a declared map: each is answered in its own space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipelines.cli import main
from pipelines.publishing.inference import InferenceModel
from pipelines.publishing.policy import load_policy
from pipelines.publishing.trained_model import load_trained, with_instructions
from pipelines.serving.adapters.own import Own
from pipelines.serving.greeting import greeting
from preprocessing.store.episode_store import EpisodeStore
from tests.support.own_robots import ELEVEN, INTO_RT1, JOINTS, POSE, SEVEN, make_store

SMALL = ["--loop.steps", "2", "--loop.global_batch", "8", "--loop.micro_batch", "4", "--scaling", "Quantiles"]
RT2 = ["--launch", "InProcess", "--engine", "TorchEngineConfig", "--co_fine_tuning.robot_share", "1"]

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("mixed")
    return {robot.name: make_store(robot, folder).root for robot in (SEVEN, ELEVEN, JOINTS)}


def mixture(**maps: str) -> str:
    """A file for --config."""
    Path("mixture.yaml").write_text(yaml.safe_dump({"mixture": {"space": "rt1-11d", "maps": maps}}))
    return "mixture.yaml"


@pytest.mark.parametrize(("recipe", "flags"), [("rt1_tiny", []), ("rt2_tiny", RT2)])
def test_trained_together_and_answered_apart(
    recipe: str, flags: list[str], stores: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    both = [stores["seven_d"], stores["eleven_d"]]
    config = ["--config", mixture(seven_d=INTO_RT1)]
    assert main(["train", recipe, "--data", *both, "--output", "run", *SMALL, *flags, *config]) == 0
    assert "world_vector_x to gripper_closedness_action: seven_d 50.0 %, eleven_d 50.0 %" in capsys.readouterr().out
    trained = load_trained("run")
    assert trained.contract.action.name == "rt1-11d" and trained.model.spec.size == 11
    mapped, native = trained.contract.datasets
    assert mapped.own is not None and native.own is None and mapped.action_mask == native.action_mask
    np.testing.assert_allclose(mapped.statistics.mean[1:8], native.statistics.mean[1:8], atol=1e-6)  # the same data

    assert main(["evaluate", "run", "--data", *both, "--json", "--no-perturbations", "--html", "page.html"]) == 0
    first, second = json.loads(capsys.readouterr().out.splitlines()[-1])["evaluations"]
    assert first["dimensions"] == second["dimensions"] and "world_vector_x" in first["dimensions"]
    own_space, moved = first["own_space"], first["per_dimension"]["world_vector_x"]
    assert own_space["space"] == "end-effector-7d" and "own_space" not in second
    assert own_space["units"]["gripper_open"] == "openness" and set(own_space["mean_absolute_error"]) == {*SEVEN.names}
    for policy in ("policy", "mean_action"):
        error = own_space["mean_absolute_error"]["position_delta_x"][policy]
        assert error == pytest.approx(moved[policy]["mean_absolute_error"], rel=1e-5)
    assert "In the robot&#x27;s own space, end-effector-7d" in Path("page.html").read_text()

    model = InferenceModel(with_instructions(trained))
    for robot, name in ((SEVEN, "position_delta_x"), (ELEVEN, "world_vector_x")):
        said = greeting(model, Own(), robot.name, "run")
        assert said["action_names"] == said["dimensions"] and name in said["units"]  # type: ignore[operator]
    for_both: Any = greeting(model, Own(), None, "run")
    assert for_both["action_names"] == for_both["dimensions"] == [] and for_both["convention"] == {}
    by_set = for_both["datasets"]
    assert by_set["seven_d"]["action_names"] == list(SEVEN.names) and len(by_set["eleven_d"]["action_names"]) == 11
    assert by_set["seven_d"]["convention"]["gripper"] == "1 is open, 0 is closed"
    assert by_set["eleven_d"]["convention"]["gripper"] == "+1 closes, -1 opens"
    assert main(["register", "run", "--name", "mixed", "--alias", "champion"]) == 0
    frame = np.zeros((16, 24, 3), np.uint8)
    for source in ("run", "models:/mixed@champion"):
        own = load_policy(source, dataset="seven_d").act(frame, "fold the towel")
        theirs = load_policy(source, dataset="eleven_d").act(frame, "fold the towel")
        rotation = SEVEN.names[3:6] if recipe == "rt2_tiny" else ()  # is no field of that recipe's answers
        assert tuple(own.values) == SEVEN.names and own.absent == rotation and own.units["gripper_open"] == "openness"
        assert theirs.values["world_vector_x"] == pytest.approx(own.values["position_delta_x"], abs=1e-5)
        assert theirs.values["gripper_closedness_action"] == pytest.approx(-(own.values["gripper_open"] or 0), abs=1e-5)
        assert "terminate_episode" in theirs.absent


def test_the_same_run_in_the_space_of_the_other(stores: dict[str, str]) -> None:
    text = "position_delta = world_vector; rotation_delta = rotation_delta; gripper_open = -gripper_closedness_action"
    Path("m.yaml").write_text(yaml.safe_dump({"mixture": {"space": "end-effector-7d", "maps": {"eleven_d": text}}}))
    both = [stores["seven_d"], stores["eleven_d"]]
    assert main(["train", "rt1_tiny", "--data", *both, "--output", "run", *SMALL, "--config", "m.yaml"]) == 0
    assert load_trained("run").contract.action.name == "end-effector-7d"
    action = load_policy("run", dataset="eleven_d").act(np.zeros((16, 24, 3), np.uint8), "fold the towel")
    assert len(action.values) == 11 and action.values["terminate_episode"] == 1.0
    assert action.classes == {"terminate_episode": "arm"} and "base_displacement_vector_x" in action.absent
    statistics = EpisodeStore.open(stores["eleven_d"]).dataset.statistics
    assert statistics.minimum[1] <= (action.values["world_vector_x"] or 0) <= statistics.maximum[1]


def test_a_space_of_a_lab_s_own_may_be_the_common_one(stores: dict[str, str], tmp_path: Path) -> None:
    both = [make_store(POSE, tmp_path).root, stores["seven_d"]]
    text = "position_delta = position_delta; rotation_delta = rotation_delta"
    Path("m.yaml").write_text(yaml.safe_dump({"mixture": {"space": "pose-6d", "maps": {"seven_d": text}}}))
    assert main(["train", "rt1_tiny", "--data", *both, "--output", "run", *SMALL, "--config", "m.yaml"]) == 0
    assert load_trained("run").contract.action.names == POSE.names
    action = load_policy("run", dataset="seven_d").act(np.zeros((16, 24, 3), np.uint8), "fold the towel")
    assert tuple(action.values) == SEVEN.names and action.absent == ("gripper_open",)


def test_what_cannot_be_mixed_is_named(stores: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        (["seven_d", "eleven_d"], [], "name a common space with mixture.space and declare mixture.maps into it"),
        (["seven_d", "eleven_d"], ["--mixture.space", "rt1-11d"], "seven_d acts in end-effector-7d and the mixture in"),
        (["seven_joints", "eleven_d"], ["--config", mixture(seven_joints="world_vector_x = joint_0")], "kinematics"),
        (["seven_d", "eleven_d"], ["--mixture.space", "rt1-12d"], "mixture.space 'rt1-12d' is no action space"),
        (["seven_d"], ["--mixture.maps", "seven_d", "a = b"], "mixture.maps lead into a common space: name it"),
    ]
    for names, flags, words in cases:
        capsys.readouterr()
        data = [stores[name] for name in names]
        assert main(["train", "rt1_tiny", "--data", *data, "--output", "run", *SMALL, *flags]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1, said
