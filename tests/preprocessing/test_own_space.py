"""Datasets of another action space than RT-1's: their YAML spec, their store, and what it says of its dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from preprocessing import dataset_spec
from preprocessing.action_parts import Columns
from preprocessing.spec_file import read_spec
from preprocessing.store.summary import summary, text
from rt_models.action_space import SPACES
from rt_models.spec import Contract
from tests.support.own_robots import JOINTS, POSE, ROBOTS, TWO_ARMS, Robot, make_store


@pytest.mark.parametrize("robot", ROBOTS, ids=lambda robot: robot.name)
def test_a_store_in_the_robot_s_own_space(robot: Robot, tmp_path: Path) -> None:
    store = make_store(robot, tmp_path)
    action, dataset = store.contract.action, store.dataset
    assert action.names == robot.names and all(dataset.action_mask)
    assert [meaning.kind for meaning in dataset.meanings] == [robot.kind] * action.size
    assert [meaning.state for meaning in dataset.meanings] == [f"state/s_{name}" for name in robot.names]
    assert Contract.from_json(store.contract.to_json()) == store.contract
    table = store.read_shard(0, ["action", "source/action"])
    assert table["action"].to_pylist() == table["source/action"].to_pylist()
    found = summary(store)
    assert found["space"] == action.name and list(found["dimensions"]) == list(robot.names)
    assert f"actions in {action.name}, with the state that they move:" in text(found)
    assert f"{robot.kind}" in text(found)


def test_neutral_values_are_those_of_the_kind(tmp_path: Path) -> None:
    store = make_store(TWO_ARMS, tmp_path)
    neutral = store.dataset.neutral(store.contract.action)
    assert np.isnan(neutral[:6]).all() and neutral[6] == np.float32(store.dataset.statistics.mean[6])
    assert (make_store(JOINTS, tmp_path).dataset.neutral(SPACES["joints-7d"].spec()) == 0).all()


@pytest.mark.parametrize(
    ("declared", "kind", "expected"),
    [
        ("by kind", "delta", 0.0),
        ("by kind", "effort", None),
        ("none", "delta", None),
        (0.5, "absolute", 0.5),
        (0, "absolute", 0.0),
    ],
)
def test_a_neutral_value_can_be_declared(declared: Any, kind: Any, expected: float | None) -> None:
    part = Columns(names=("arm",), path="action", unit="rad", kind=kind, neutral=declared)
    assert [meaning.neutral for meaning in part.meanings(np.array([0.25]))] == [expected]


def test_what_a_dataset_lacks_is_neutral_where_its_name_displaces() -> None:
    spec = dataset_spec.DatasetSpec(
        name="planar",
        cameras={"image": "i"},
        instruction=dataset_spec.Text(path="t"),
        action=(Columns(names=("position_delta_x", "position_delta_y"), path="action", unit="m", kind="delta"),),
        source_actions=("action",),
        gripper="none",
        control_hz=5,
        space=SPACES["end-effector-7d"],
    )
    meanings = spec.meanings([0.0] * 7)
    assert [meaning.neutral for meaning in meanings] == [0.0] * 6 + [None] and meanings[3].kind == ""
    assert spec.action_mask == (True, True, *(False,) * 5)
    np.testing.assert_array_equal(spec.standardize({"action": np.array([[1.0, 2.0]])}), [[1, 2, 0, 0, 0, 0, 0]])


def classes(tmp_path: Path, values: list[float]) -> np.ndarray:
    data = POSE.spec() | {
        "space": {"name": "tool", "dimensions": ["reach", {"mode": ["idle", "drill", "screw"]}]},
        "action": {
            "reach": {"path": "action", "unit": "m", "kind": "delta"},
            "mode": {"path": "action", "first": 1},
        },
        "proprio": [],
    }
    (tmp_path / "tool.yaml").write_text(yaml.safe_dump(data))
    spec = read_spec(tmp_path / "tool.yaml")
    assert spec.units == ("m", "class") and spec.space.dimensions[1].classes == ("idle", "drill", "screw")
    return spec.standardize({"action": np.array([[0.5, value] for value in values])})


def test_classes_have_names_and_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    assert classes(tmp_path, [0, 2])[:, 1].tolist() == [0, 2]
    for wrong in (3, -1, 0.5):
        with pytest.raises(ValueError, match=r"action of step 1 is .*, and mode has the classes 0 to 2: idle, drill"):
            classes(tmp_path, [0, wrong])


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    data = yaml.safe_load(yaml.safe_dump(TWO_ARMS.spec()))
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda d: d.update(space="three-arms"),
            "space 'three-arms' does not ship: give one of rt1-11d, end-effector-7d",
        ),
        (lambda d: d.update(space={"name": "a"}), "space must be one of .*, or a mapping with name and dimensions"),
        (lambda d: d.update(space=3), "space must be one of"),
        (lambda d: d["action"].update(elbow={}), "unknown 'elbow': in two-arms-14d there are left_joint, left_gripper"),
        (lambda d: d["action"]["left_joint"].pop("kind"), "action.left_joint lacks kind"),
        (lambda d: d["action"]["left_joint"].update(kind="?"), r"kind of action.left_joint is still '\?': fill it in"),
        (lambda d: d["action"]["left_joint"].update(kind="jerk"), "kind of action.left_joint must be one of delta, "),
        (lambda d: d["action"]["left_joint"].update(state="q"), "state 'q_0' of action.left_joint is no column of"),
        (lambda d: d["action"]["left_joint"].update(neutral="stop"), "neutral of action.left_joint must be a number"),
        (lambda d: d["action"]["left_joint"].update(scale=0), "left_joint_0: .*scale not 0"),
        (lambda d: d["action"]["left_joint"].update(units="m"), "action.left_joint has an unknown 'units'"),
        (
            lambda d: d["action"].update(left_joint_1=d["action"]["left_joint"] | {"state": None}),
            "each at most once of",
        ),
        (lambda d: d.pop("space"), "the file lacks gripper|action has an unknown 'left_joint'"),
    ],
)
def test_a_mistake_in_the_file_is_named(
    change: Callable[[dict[str, Any]], object], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(changed(change)))
    with pytest.raises(ValueError, match=sentence):
        read_spec(tmp_path / "wrong.yaml")


def test_a_spec_s_hash_knows_the_space(tmp_path: Path) -> None:
    def hash_of(data: dict[str, Any]) -> str:
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(data))
        return read_spec(tmp_path / "spec.yaml").hash()

    own = hash_of(changed(lambda d: None))
    written_out = {"dimensions": list(TWO_ARMS.names), "gripper": "1 is open, 0 is closed"}
    assert own == hash_of(changed(lambda d: d.update(space={"name": "two-arms-14d", **written_out})))
    assert own != hash_of(changed(lambda d: d.update(space={"name": "mine", **written_out})))
    assert own != hash_of(changed(lambda d: d["action"]["left_joint"].update(kind="delta")))


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (Columns(names=("joint_0",), path="action", unit="rad", kind=""), "joint_0 needs a kind"),
        (
            Columns(names=("joint_0", "joint_2"), path="action", unit="rad", kind="delta"),
            "are not neighbours in joints-7d",
        ),
        (Columns(names=("elbow",), path="action", unit="rad", kind="delta"), "needs each at most once of joint_0"),
        (
            Columns(names=("joint_0",), path="a", unit="rad", kind="delta", state=("q",)),
            "joint_0 moves 'q', proprio has",
        ),
        (dataset_spec.Linear(group="world_vector", path="action", unit="m"), "fills a group of RT-1's 11-D space"),
    ],
)
def test_a_spec_in_python_is_looked_at_too(part: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        dataset_spec.DatasetSpec(
            name="arm",
            cameras={"image": "i"},
            instruction=dataset_spec.Text(path="t"),
            action=(part,),
            source_actions=("action",),
            gripper="none",
            control_hz=5,
            space=SPACES["joints-7d"],
        )


def test_not_finite_is_refused_by_name() -> None:
    spec = dataset_spec.DatasetSpec(
        name="walker",
        cameras={"image": "i"},
        instruction=dataset_spec.Text(path="t"),
        action=(
            Columns(names=SPACES["actuators-6d"].names, path="action", unit="unitless", kind="effort", neutral=0.0),
        ),
        source_actions=("action",),
        gripper="none",
        control_hz=40,
        space=SPACES["actuators-6d"],
    )
    with pytest.raises(ValueError, match="action of step 0 is not finite"):
        spec.standardize({"action": np.array([[0, 0, math.nan, 0, 0, 0]])})
