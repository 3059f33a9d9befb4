"""Adapters: there and back, and the numbers that each robot's software expects, from arithmetic done elsewhere."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pipelines.serving.adapters.base import Adapter
from pipelines.serving.adapters.catalogue import ADAPTERS, adapter
from pipelines.serving.adapters.end_effector import axis_angle_to_euler, euler_to_axis_angle
from pipelines.serving.adapters.libero import Libero
from pipelines.serving.adapters.openvla import OpenVLA
from pipelines.serving.adapters.simpler import GoogleRobot, WidowXBridge
from pipelines.serving.adapters.vla_eval import VlaEval
from rt_models.action_space import ActionSpec, DimensionMeaning, rt1_action_spec, seven_d_action_spec
from rt_models.spec import ActionStatistics, DatasetContract, unscaled

ELEVEN = {dimension.name: dimension.unit for dimension in rt1_action_spec().dimensions}
SEVEN = {dimension.name: dimension.unit for dimension in seven_d_action_spec().dimensions}
DROID = {**{f"joint_velocity_{joint}": "rad/s" for joint in range(7)}, "gripper_closed": "closedness"}
SPACES = {"rt1-11d": ELEVEN, "end-effector-7d": SEVEN, "droid": DROID}


def values_of(units: dict[str, str], moved: list[float], closedness: float) -> dict[str, float | None]:
    """Displacement and rotation from `moved`, the gripper's own number for `closedness`, 0 elsewhere."""
    values: dict[str, float | None] = dict.fromkeys(units, 0.0)
    position = "world_vector" if "world_vector_x" in units else "position_delta"
    for place, axis in enumerate("xyz"):
        values[f"{position}_{axis}"] = moved[place]
        values[f"rotation_delta_{axis}"] = moved[3 + place]
    gripper = {"gripper_closedness_action": closedness} if "world_vector_x" in units else {}
    return values | (gripper or {"gripper_open": (1 - closedness) / 2})


small = st.floats(-0.04, 0.04, allow_subnormal=False)


@given(
    name=st.sampled_from(sorted(set(ADAPTERS) - {"droid"})),
    space=st.sampled_from(["rt1-11d", "end-effector-7d"]),
    moved=st.lists(small, min_size=6, max_size=6),
    closes=st.booleans(),
)
def test_a_command_stands_for_the_values_it_was_made_of(
    name: str, space: str, moved: list[float], closes: bool
) -> None:
    units, spoken = SPACES[space], adapter(name)
    values = values_of(units, moved, 1.0 if closes else -1.0)
    command = spoken.command(values, units)
    assert command.dtype == np.float32 and len(command) == len(spoken.names(list(units)))
    for dimension, value in spoken.values(command, units).items():
        assert value == pytest.approx(values[dimension], abs=1e-6), dimension


@given(st.lists(st.floats(-1, 1, width=32, allow_subnormal=False), min_size=8, max_size=8))
def test_joint_velocities_are_passed_on(numbers: list[float]) -> None:
    spoken, values = adapter("droid"), dict(zip(DROID, numbers, strict=True))
    command = spoken.command(values, DROID)
    assert spoken.values(command, DROID) == values
    assert spoken.names(list(DROID)) == tuple(DROID)


@given(st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3))
def test_a_rotation_is_the_same_in_both_forms(angles: list[float]) -> None:
    vector = euler_to_axis_angle(*angles)
    np.testing.assert_allclose(vector, Rotation.from_euler("xyz", angles).as_rotvec(), atol=1e-9)
    np.testing.assert_allclose(axis_angle_to_euler(vector), angles, atol=1e-7)


MOVED = [0.03, -0.02, 0.01, 0.3, -0.2, 0.1]


def test_libero_gets_its_controller_s_range() -> None:
    command = Libero().command(values_of(ELEVEN, MOVED, 1.0), ELEVEN)
    np.testing.assert_allclose(command[:3], np.array(MOVED[:3]) / 0.05, rtol=1e-6)
    np.testing.assert_allclose(command[3:6], Rotation.from_euler("xyz", MOVED[3:]).as_rotvec() / 0.5, rtol=1e-5)
    assert command[6] == 1
    unitless = ELEVEN | {name: "unitless" for name in ELEVEN if name.startswith(("world", "rotation"))}
    np.testing.assert_allclose(Libero().command(values_of(ELEVEN, MOVED, -1.0), unitless), [*MOVED, -1.0], rtol=1e-6)
    far = Libero().command(values_of(ELEVEN, [1.0] * 6, 0.0), ELEVEN)
    assert far[:6].max() == 1.0


def test_the_google_robot_s_rotation_is_not_converted() -> None:
    command = GoogleRobot().command(values_of(ELEVEN, MOVED, 0.005), ELEVEN)
    np.testing.assert_allclose(command, [*MOVED, 0.0], rtol=1e-6)
    assert GoogleRobot().command(values_of(ELEVEN, MOVED, -0.5), ELEVEN)[6] == -0.5
    sticky = GoogleRobot(gripper="vla_eval")
    assert [sticky.gripper_of(closedness) for closedness in (1.0, -1.0, 0.0)] == [0.0, 1.0, 0.5]


def test_widowx_is_clipped_then_converted_and_its_gripper_negated() -> None:
    moved = [0.1, -0.2, 0.01, 0.5, -0.5, 0.1]
    command = WidowXBridge().command(values_of(ELEVEN, moved, 0.3), ELEVEN)
    np.testing.assert_allclose(command[:3], [0.05, -0.05, 0.01], rtol=1e-6)
    expected = Rotation.from_euler("xyz", [0.25, -0.25, 0.1]).as_rotvec()
    np.testing.assert_allclose(command[3:6], expected, rtol=1e-5)
    assert command[6] == -1
    assert [WidowXBridge().gripper_of(closedness) for closedness in (-0.1, 0.0, 0.1)] == [1.0, -1.0, -1.0]


@pytest.mark.parametrize(
    ("gripper", "closed", "opened"),
    [
        ("binary_close_positive", 1, -1),
        ("binary_close_negative", -1, 1),
        ("binary_close_01", 1, 0),
        ("continuous_01", 0, 1),
        ("raw", 1, -1),
    ],
)
def test_the_harness_s_grippers(gripper: str, closed: float, opened: float) -> None:
    spoken = VlaEval(gripper=gripper)  # type: ignore[arg-type]
    assert [spoken.gripper_of(closedness) for closedness in (1.0, -1.0)] == [closed, opened]
    assert [spoken.closedness_of(command) for command in (closed, opened)] == [1, -1]


def test_openvla_opens_with_one() -> None:
    np.testing.assert_allclose(OpenVLA().command(values_of(ELEVEN, MOVED, 1.0), ELEVEN), [*MOVED, 0.0], rtol=1e-6)
    np.testing.assert_allclose(OpenVLA().command(values_of(SEVEN, MOVED, -1.0), SEVEN), [*MOVED, 1.0], rtol=1e-6)


def test_a_value_that_is_none_is_no_number() -> None:
    values = values_of(ELEVEN, MOVED, 0.0) | {"world_vector_x": None, "gripper_closedness_action": None}
    for name in sorted(set(ADAPTERS) - {"droid"}):
        command = adapter(name).command(values, ELEVEN)
        assert np.isnan(command).sum() == 2, name


def test_a_policy_that_lacks_dimensions_is_named() -> None:
    with pytest.raises(ValueError, match=r"Droid commands joint_velocity_0, .*which the policy does not have"):
        adapter("droid").require_fitting(list(ELEVEN))
    for units in (ELEVEN, SEVEN):
        for name in sorted(set(ADAPTERS) - {"droid"}):
            adapter(name).require_fitting(list(units))
    with pytest.raises(ValueError, match="VlaEval commands world_vector or position_delta"):
        adapter("vla-eval").require_fitting(list(DROID))


def declared(**changed: DimensionMeaning) -> tuple[ActionSpec, DatasetContract]:
    """A dataset of the 7-D space, its dimensions as an adapter takes them but for those of `changed`."""
    spec = seven_d_action_spec().with_units({name: "rad" if "rot" in name else "m" for name in SEVEN})
    kinds = {name: DimensionMeaning(kind="absolute" if name == "gripper_open" else "delta") for name in SEVEN} | changed
    ones = (1.0,) * spec.size
    found = ActionStatistics(count=9, mean=ones, std=ones, minimum=ones, maximum=ones, q01=ones, q99=ones)
    side = DatasetContract(
        name="arm",
        version="1.0.0",
        control_hz=10,
        action_mask=(True,) * spec.size,
        units=tuple(dimension.unit for dimension in spec.dimensions),
        statistics=found,
        transform=unscaled(spec.size),
        meanings=tuple(kinds.values()),
    )
    return spec, side


@pytest.mark.parametrize("name", sorted(set(ADAPTERS) - {"droid", "own", "lerobot", "custom"}))
def test_what_the_contract_declares_otherwise_is_not_read_by_its_name(name: str) -> None:
    spoken = adapter(name)
    spec, side = declared()
    assert spoken.misread(spec, side) == ""
    eleven = replace(side, meanings=(), units=tuple(ELEVEN.values()), action_mask=(True,) * len(ELEVEN))
    assert spoken.misread(rt1_action_spec(), eleven) == ""
    turned = DimensionMeaning(kind="delta", rotation="axis angle")
    assert "rotation_delta_x is declared axis angle" in spoken.misread(*declared(rotation_delta_x=turned))
    place = DimensionMeaning(kind="absolute")
    assert "position_delta_z is declared absolute" in spoken.misread(*declared(position_delta_z=place))
    change = DimensionMeaning(kind="delta")
    assert "gripper_open is declared delta" in spoken.misread(*declared(gripper_open=change))
    for unit in ("mm", "m/s"):
        units = tuple(unit if name == "position_delta_y" else own for name, own in zip(SEVEN, side.units, strict=True))
        assert f"position_delta_y is in {unit}" in spoken.misread(spec, replace(side, units=units))
    other = replace(spec, gripper="1 is closed, 0 is open")
    assert "the space says 1 is closed, 0 is open" in spoken.misread(other, side)


OWN = """
image_keys: [images.front]
text_keys: [task]
outputs:
  - {dimension: world_vector_x, name: forward, unit: mm, scale: 1000, low: -30, high: 30}
  - {dimension: gripper_closedness_action, scale: -0.5, offset: 0.5}
"""


def written(tmp_path: Path, content: str) -> Adapter:
    file = tmp_path / "robot.yaml"
    file.write_text(content)
    return adapter(str(file))


def test_a_robot_of_one_s_own_is_a_file(tmp_path: Path) -> None:
    spoken = written(tmp_path, OWN)
    values = values_of(ELEVEN, [0.02, 0, 0, 0, 0, 0], 1.0)
    command = spoken.command(values, ELEVEN)
    np.testing.assert_allclose(command, [20, 0], atol=1e-6)
    assert spoken.values(command, ELEVEN) == pytest.approx({"world_vector_x": 0.02, "gripper_closedness_action": 1})
    assert spoken.command(values | {"world_vector_x": 1.0}, ELEVEN)[0] == 30
    assert spoken.names(list(ELEVEN)) == ["forward", "gripper_closedness_action"]
    assert [spoken.unit_of(name, ELEVEN) for name in spoken.names([])] == ["mm", "closedness"]
    question = spoken.question({"images": {"front": b"x", "wrist": b"y"}, "task": "go"})
    assert (question.camera("image", ()), question.instruction) == (b"x", "go")
    widow = written(tmp_path, "type: WidowXBridge\nposition_limit: 0.02\n")
    assert isinstance(widow, WidowXBridge) and widow.position_limit == 0.02 and math.isinf(widow.rotation_limit)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("outputs: []", "outputs must be one or more"),
        ("outputs: [{dimension: a}, {dimension: a}]", "each with its own name, got a, a"),
        ("outputs: [{dimension: a, scale: 0}]", "output a: scale 0.0 must not be 0"),
        ("outputs: [{dimension: a, factor: 2}]", "factor is not a setting of Output"),
        ("type: Tiago", "no adapter 'Tiago'"),
        ("[1, 2]", "expected a mapping of fields"),
        ("type: VlaEval\ngripper: soft", "gripper: expected one of binary_close_positive"),
        ("type: VlaEval\nposition_unit_m: 0", "position_unit_m must be above 0, got 0"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"robot\.yaml: ") as caught:
        written(tmp_path, content)
    assert words in str(caught.value)


def test_a_name_that_is_unknown_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="--adapter libro: there is no such adapter: did you mean 'libero'"):
        adapter("libro")
    with pytest.raises(ValueError, match=r"--adapter none\.yaml: there is no such file"):
        adapter("none.yaml")


@pytest.mark.parametrize(
    ("spoken", "moved", "clipped"),
    [
        (Libero(), [0.06, 0.01, -0.2, 0.0, 0.0, 0.0], ["delta_x", "delta_z"]),
        (Libero(), [0.05, 0.0, 0.0, 0.0, 0.0, 0.4], []),
        (WidowXBridge(), [0.0, 0.0, 0.0, 0.0, 0.3, 0.0], ["axis_angle_y"]),
        (OpenVLA(), [9.0] * 3 + [0.0] * 3, []),
    ],
)
def test_what_an_adapter_brings_within_its_robot_s_range_is_named(
    spoken: Adapter, moved: list[float], clipped: list[str]
) -> None:
    assert spoken.clipped(values_of(ELEVEN, moved, 0.5), ELEVEN) == clipped


def test_so_is_what_one_s_own_file_bounds(tmp_path: Path) -> None:
    file = tmp_path / "arm.yaml"
    file.write_text("outputs: [{dimension: world_vector_x, name: forward, scale: 1000, low: -30, high: 30}]")
    own = adapter(str(file))
    assert own.clipped(values_of(ELEVEN, [0.04] + [0.0] * 5, 0.5), ELEVEN) == ["forward"]
    assert own.clipped(values_of(ELEVEN, [math.nan] + [0.0] * 5, 0.5), ELEVEN) == []
