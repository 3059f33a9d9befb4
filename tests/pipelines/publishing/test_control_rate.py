"""Another rate than was trained: refused, or displacements scaled; and what a robot says of itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pipelines.publishing.control_rate import at_rate, rate_factor
from pipelines.publishing.inference import NamedAction
from pipelines.publishing.robot_declaration import require_declared
from rt_models.action_space import SPACES, DimensionMeaning
from rt_models.spec import DatasetContract, OwnSide, rt1_action_spec
from tests.rt_models.test_robot_inputs import state
from tests.rt_models.test_spec import ZEROS, contract

SIDE = replace(contract(ZEROS).datasets[0], control_hz=5.0)
RT1 = rt1_action_spec()


def action(names: tuple[str, ...], absent: tuple[str, ...] = ()) -> NamedAction:
    return NamedAction(values=dict.fromkeys(names, 2.0), units={}, classes={}, absent=absent, frames_seen=1)


def test_displacements_alone_are_scaled_so_that_speeds_stay() -> None:
    factor = rate_factor(SIDE, 20, "scale")
    scaled = at_rate(action(RT1.names, absent=("rotation_delta_x",)), factor, RT1, SIDE).values
    moved = {name for name, value in scaled.items() if value == 0.5}
    assert factor == 0.25
    assert moved == {n for n in RT1.names if n.startswith(("world", "rotation", "base"))} - {"rotation_delta_x"}
    assert {scaled[name] for name in set(RT1.names) - moved} == {2.0}


def test_a_gripper_that_changes_is_a_displacement_too() -> None:
    for gripper, expected in (("relative", 0.5), ("absolute", 2.0), ("", 2.0)):
        side = SIDE.declared(gripper=gripper, spec="")
        own = replace(SIDE, own=OwnSide(action=RT1, dataset=SIDE, map=())).declared(gripper=gripper, spec="")
        for each in (side, own.acted(RT1)[1]):
            assert at_rate(action(RT1.names), 0.25, RT1, each).values["gripper_closedness_action"] == expected


def test_a_space_of_its_own_says_what_is_a_displacement() -> None:
    space = SPACES["joints-7d"].spec()
    kinds = ("delta", "absolute", "velocity", "effort", "", "delta", "absolute")
    side = replace(SIDE, meanings=tuple(DimensionMeaning(kind=kind) for kind in kinds))  # type: ignore[arg-type]
    values = at_rate(action(space.names), 0.5, space, side).values
    assert [values[name] for name in space.names] == [1, 2, 2, 2, 2, 1, 2]
    absent = replace(action(space.names), values=dict.fromkeys(space.names))
    assert at_rate(absent, 0.5, space, side).values == absent.values


@pytest.mark.parametrize("rate", [5.0, 5.05, None])
def test_the_rate_that_was_trained_changes_nothing(rate: float | None) -> None:
    assert rate_factor(SIDE, rate, "refuse") == 1.0
    assert at_rate(whole := action(RT1.names), 1.0, RT1, SIDE) is whole


@pytest.mark.parametrize("rate", [0.0, -5.0, math.inf, math.nan])
def test_what_is_no_rate_is_refused_in_either_way(rate: float) -> None:
    for other in ("refuse", "scale"):
        with pytest.raises(ValueError, match="control_hz must be"):
            rate_factor(SIDE, rate, other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"acts 10 times a second, and the policy learned from a at 5 Hz"):
        rate_factor(SIDE, 10, "refuse")


def side_of_own() -> DatasetContract:
    """A side in a common space whose robot has seven joints, with a state."""
    space = SPACES["joints-7d"].spec()
    own = replace(SIDE, units=("rad",) * 7, action_mask=(True,) * 7)
    return replace(SIDE, own=OwnSide(action=space, dataset=own, map=()), state=state("y", "x"))


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (
            {"action_names": ["joint_1", "joint_0", *(f"joint_{n}" for n in range(2, 7))]},
            "joint_1 at place 0, .*joint_0",
        ),
        ({"action_names": ["joint_0"]}, "has 1 values and the policy's 7: joint_0, joint_1"),
        ({"action_names": [*(f"joint_{n}" for n in range(6)), "gripper"]}, "has gripper, where the policy has joint_6"),
        ({"action_units": ["rad"] * 6 + ["deg"]}, "joint_6 is in deg on the robot and in rad in the policy"),
        ({"state_names": ["x", "y"]}, "state has x at place 0, where the policy has y"),
        ({"state_units": ["m", "cm"]}, "state x is in cm on the robot and in m in the policy"),
        ({"state_names": "yx"}, "state_names must be a list of texts"),
        ({"action_unit": ["rad"]}, "there is no declaration 'action_unit'"),
    ],
)
def test_a_robot_of_another_order_or_unit_is_told_which(declared: dict[str, object], words: str) -> None:
    whole = replace(contract(ZEROS), datasets=(side_of_own(),))
    agreed = {"action_names": [f"joint_{n}" for n in range(7)], "action_units": ["rad"] * 7}
    require_declared(agreed | {"state_names": ["y", "x"], "state_units": ["m", "m"]}, whole, whole.datasets[0])
    with pytest.raises(ValueError, match=words):
        require_declared(declared, whole, whole.datasets[0])
