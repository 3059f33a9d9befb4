"""Robots whose actions are not RT-1's, on the real command line: preprocessed, audited, trained, scored, registered,
acted in with their own names and units."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipelines.cli import main
from pipelines.publishing.policy import load_policy
from pipelines.publishing.trained_model import load_trained
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image
from tests.support.own_robots import JOINTS, ROBOTS, TWO_ARMS, Robot, write_source

MODELS = {
    "rt1_tiny": [],
    "rt2_tiny": ["--launch", "InProcess", "--engine", "TorchEngineConfig", "--co_fine_tuning.robot_share", "1"],
}
SMALL = ["--loop.steps", "2", "--loop.global_batch", "8", "--loop.micro_batch", "4", "--loop.log_every", "1"]

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """{robot: {split: store}}, made by `rtp preprocess` from the robot's YAML spec."""
    folder = tmp_path_factory.mktemp("robots")
    made: dict[str, dict[str, str]] = {}
    for robot in ROBOTS:
        source, spec = write_source(robot, folder), folder / f"{robot.name}.yaml"
        spec.write_text(yaml.safe_dump(robot.spec()))
        for split in ("train", "val"):
            words = [str(source), str(folder / "stores"), "--dataset", str(spec), "--split", split]
            assert main(["preprocess", *words, "--encoder", "hash", "--workers", "0"]) == 0
            made.setdefault(robot.name, {})[split] = str(folder / "stores" / robot.name / "1.0.0" / split)
    return made


def evaluations(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])["evaluations"]


@pytest.mark.parametrize("robot", ROBOTS, ids=lambda robot: robot.name)
@pytest.mark.parametrize("recipe", MODELS)
def test_from_the_store_to_the_robot(
    robot: Robot, recipe: str, stores: dict[str, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    train, val = stores[robot.name]["train"], stores[robot.name]["val"]
    flags = [*MODELS[recipe], *SMALL]
    assert main(["train", recipe, "--data", train, "--validation", val, "--output", "run", *flags]) == 0
    trained = load_trained("run")
    assert trained.model.spec.names == robot.names and trained.contract.action.name == trained.model.spec.name

    assert (
        main(
            [
                "evaluate",
                "run",
                "--data",
                val,
                "--json",
                "--html",
                "scores.html",
                "--bootstrap-samples",
                "20",
                "--no-perturbations",
            ]
        )
        == 0
    )
    (scores,) = evaluations(capsys)
    assert tuple(scores["dimensions"]) == robot.names
    assert {row["unit"] for row in scores["per_dimension"].values()} == set(units_of(robot))
    assert robot.names[0] in Path("scores.html").read_text()

    assert main(["register", "run", "--name", "own", "--alias", "champion"]) == 0
    opened = EpisodeStore.open(val)
    frame = decode_image(opened.read_rows(0, 0, ["image"])["image"][0].as_py())
    answers = [load_policy(source).act(frame, "fold the towel") for source in ("run", "models:/own@champion")]
    assert answers[0] == answers[1]
    assert tuple(answers[0].values) == robot.names and answers[0].absent == ()
    assert tuple(answers[0].units.values()) == units_of(robot)
    statistics = EpisodeStore.open(train).dataset.statistics
    for value, low, high in zip(answers[0].values.values(), statistics.minimum, statistics.maximum, strict=True):
        assert value is not None and low - (high - low) <= value <= high + (high - low)


def units_of(robot: Robot) -> tuple[str, ...]:
    return tuple(f"{unit}/s" for unit in robot.units) if robot.kind == "velocity" else robot.units


def test_resumed_as_it_was(stores: dict[str, dict[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    common = ["train", "rt1_tiny", "--output", "run", *SMALL]
    assert main([*common, "--data", stores["two_arms"]["train"]]) == 0
    assert main([*common, "--data", stores["two_arms"]["train"], "--loop.steps", "3", "--resume"]) == 0
    assert main([*common, "--data", stores["seven_joints"]["train"], "--resume"]) == 2
    assert "was trained under contract" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("robot", "flags", "words"),
    [
        (
            TWO_ARMS,
            ["--scaling", "Identity"],
            "only their statistics bound those of two-arms-14d: set scaling Quantiles",
        ),
        (TWO_ARMS, ["--scaling", "RT1X"], "RT-1-X has no scaling that fits"),
        (JOINTS, ["--model.world_vector_limit", "2"], "world_vector_limit 2 bounds RT-1's world vector, and joints-7d"),
        (JOINTS, ["--loader.relabel", "seven_joints"], "only the arm of RT-1's 11-D space is relabelled"),
    ],
)
def test_what_belongs_to_rt1_s_space_is_refused(
    robot: Robot,
    flags: list[str],
    words: str,
    stores: dict[str, dict[str, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    assert main(["train", "rt1_tiny", "--data", stores[robot.name]["train"], "--output", "run", *flags]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not Path("run").exists()


def test_two_spaces_without_a_map_are_refused(
    stores: dict[str, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    both = [stores["two_arms"]["train"], stores["seven_joints"]["train"]]
    assert main(["train", "rt1_tiny", "--data", *both, "--output", "run"]) == 2
    assert "action spaces two-arms-14d, joints-7d" in capsys.readouterr().err


def test_an_absent_joint_is_null_and_an_absent_gripper_is_held(
    stores: dict[str, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("fields.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {
                    "text": {
                        "action_space": {
                            "name": "two-arms-14d",
                            "gripper": "1 is open, 0 is closed",
                            "dimensions": [{"name": name} for name in TWO_ARMS.names],
                        },
                        "fields": list(TWO_ARMS.names[:7]),
                    }
                }
            }
        )
    )
    flags = [*MODELS["rt2_tiny"], *SMALL, "--config", "fields.yaml", "--output", "run"]
    assert main(["train", "rt2_tiny", "--data", stores["two_arms"]["train"], *flags]) == 0
    action = load_policy("run").act(np.zeros((16, 24, 3), np.uint8), "fold the towel")
    assert action.absent == TWO_ARMS.names[7:]
    assert [action.values[name] for name in TWO_ARMS.names[7:13]] == [None] * 6
    capsys.readouterr()
    assert main(["evaluate", "run", "--data", stores["two_arms"]["val"], "--json", "--no-perturbations"]) == 0
    (scores,) = evaluations(capsys)
    assert scores["dimensions"] == [*TWO_ARMS.names[:7], "right_gripper_open"]
    assert scores["scaled_error"]["mean"] > 6 / 14  # each joint that is not answered is wrong by its whole range
    mean = load_trained("run").contract.datasets[0].statistics.mean[13]
    assert action.values["right_gripper_open"] == pytest.approx(
        mean, abs=1e-6
    )  # held where the dataset's is on average
