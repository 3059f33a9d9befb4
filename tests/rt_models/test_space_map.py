"""Maps between action spaces: read from text, inverted exactly, refused where no affine map can mean anything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_models.action_space import RT1_SPACE, SPACES, ActionSpace, ActionSpec, DimensionMeaning, SpaceDimension
from rt_models.spec import MapArrays, MappedDimension, read_map, require_meaningful

SEVEN = SPACES["end-effector-7d"]
JOINTS = SPACES["joints-7d"]


def test_a_map_is_written_by_group_and_by_dimension() -> None:
    found = read_map(
        "world_vector = 0.5 * position_delta\ngripper_closedness_action = -2*gripper_open + 1", SEVEN.spec(), RT1_SPACE
    )
    assert found == (
        *(MappedDimension(common=f"world_vector_{a}", own=f"position_delta_{a}", scale=0.5) for a in "xyz"),
        MappedDimension(common="gripper_closedness_action", own="gripper_open", scale=-2, offset=1),
    )
    assert read_map("world_vector_x = -position_delta_y - 1e-2", SEVEN.spec(), RT1_SPACE) == (
        MappedDimension(common="world_vector_x", own="position_delta_y", scale=-1, offset=-0.01),
    )
    (held,) = read_map("gripper_open = -0.5 * held(gripper_closedness_action) + 0.5", RT1_SPACE.spec(), SEVEN)
    assert held.held and (held.scale, held.offset) == (-0.5, 0.5)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the map is empty"),
        ("world_vector = sin(position_delta)", "is no affine map"),
        ("world_vector_x = position_delta_x * position_delta_y", "is no affine map"),
        ("world_vector = gripper_open", "maps 1 dimensions onto 3"),
        ("world_vector = elbow", "'elbow' is no dimension of end-effector-7d: there are position_delta, "),
        ("elbow = gripper_open", "'elbow' is no dimension of rt1-11d"),
        ("world_vector_x = 0 * position_delta_x", "has no inverse: the scale must not be 0"),
        (
            "world_vector_x = position_delta_x; world_vector_x = position_delta_y",
            "common dimension world_vector_x twice",
        ),
        (
            "world_vector_x = position_delta_x; world_vector_y = position_delta_x",
            "own dimension position_delta_x twice",
        ),
    ],
)
def test_what_is_no_invertible_affine_map_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        read_map(text, SEVEN.spec(), RT1_SPACE)


def meanings(space: ActionSpace, **declared: str) -> list[DimensionMeaning]:
    return [replace(DimensionMeaning(), **declared)] * space.size  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "own", "declared", "common", "sentence"),
    [
        (
            "world_vector_x = joint_0",
            JOINTS,
            {"kind": "delta"},
            RT1_SPACE,
            "the arm's kinematics, which is no affine map",
        ),
        ("joint_0 = position_delta_x", SEVEN, {}, JOINTS, "the arm's kinematics"),
        (
            "rotation_delta = rotation_delta",
            SEVEN,
            {"kind": "delta", "rotation": "axis angle"},
            RT1_SPACE,
            "its rotation is axis angle",
        ),
        (
            "world_vector = position_delta",
            SEVEN,
            {"kind": "absolute"},
            RT1_SPACE,
            "declared absolute, and a motion a step is wanted",
        ),
        (
            "joint_velocity = joint",
            JOINTS,
            {"kind": "absolute"},
            SPACES["joint-velocity-8d"],
            "declared absolute, and a velocity is wanted",
        ),
        ("terminate_episode = gripper_open", SEVEN, {}, RT1_SPACE, "only the same classes map onto each other"),
        (
            "gripper_closedness_action = held(gripper_open)",
            SEVEN,
            {},
            RT1_SPACE,
            r"held\(\) is of a gripper that \+1 closes",
        ),
    ],
)
def test_what_means_nothing_is_refused(
    text: str, own: ActionSpace, declared: dict[str, str], common: ActionSpace, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        require_meaningful(read_map(text, own.spec(), common), own.spec(), meanings(own, **declared), common)


def test_lengths_are_no_angles() -> None:
    own = ActionSpace(name="slide", dimensions=(SpaceDimension(name="push"),))
    spec = own.spec().with_units({"push": "rad"})
    mapped = read_map("world_vector_x = push", spec, RT1_SPACE)
    with pytest.raises(ValueError, match="push cannot be mapped onto world_vector_x: rad are no m"):
        require_meaningful(mapped, spec, meanings(own, kind="delta"), RT1_SPACE)


def test_what_is_declared_alike_is_mapped() -> None:
    text = "world_vector = position_delta; rotation_delta = rotation_delta"
    mapped = read_map(text, SEVEN.spec(), RT1_SPACE)
    require_meaningful(mapped, SEVEN.spec(), meanings(SEVEN, kind="delta", rotation="euler xyz"), RT1_SPACE)


numbers = st.floats(-100, 100).filter(lambda number: abs(number) > 1e-2)


@given(st.permutations(range(7)), st.lists(numbers, min_size=7, max_size=7), st.lists(numbers, min_size=7, max_size=7))
def test_back_is_the_inverse_of_forward(order: list[int], scales: list[float], offsets: list[float]) -> None:
    common = SPACES["joint-velocity-8d"]
    mapped = tuple(
        MappedDimension(common=common.names[place], own=JOINTS.names[number], scale=scale, offset=offset)
        for number, (place, scale, offset) in enumerate(zip(order, scales, offsets, strict=True))
    )
    arrays = MapArrays.of(mapped, JOINTS.names, common.names)
    own_NO = np.random.default_rng(0).uniform(-3, 3, (5, 7))
    common_NA = arrays.forward(own_NO, np.full(8, 9.0))
    assert (common_NA[:, 7] == 9).all()
    np.testing.assert_allclose(arrays.back(common_NA, np.full(7, np.nan)), own_NO, rtol=1e-5, atol=1e-5)
    assert arrays.mask_back(np.ones(8, bool), 7).all()


def pose(unit: str, kind: str) -> tuple[ActionSpec, list[DimensionMeaning]]:
    """The 7-D space in `unit`, whose gripper is of this kind."""
    arm = meanings(SEVEN, kind="delta")[:6]
    return SEVEN.spec().with_units(dict.fromkeys(SEVEN.names[:6], unit)), [*arm, *meanings(SEVEN, kind=kind)[:1]]


@pytest.mark.parametrize(
    ("text", "unit", "kind", "sentence"),
    [
        ("gripper_closedness_action = gripper_open", "m", "absolute", r"that is -2 \* gripper_open \+1"),
        ("gripper_closedness_action = 2 * gripper_open - 1", "m", "absolute", "there .1 closes, -1 opens, here 1 is o"),
        ("gripper_closedness_action = -gripper_open", "m", "absolute", "that is -2"),
        ("gripper_closedness_action = gripper_open", "m", "delta", "that is -2"),
        ("world_vector = position_delta", "mm", "absolute", "its unit is mm and m is wanted: give the factor"),
        ("world_vector = -position_delta", "cm", "absolute", "its unit is cm and m is wanted"),
        ("rotation_delta = rotation_delta", "deg", "absolute", "its unit is deg and rad is wanted"),
        ("world_vector = position_delta", "m/s", "absolute", "its unit is m/s and m is wanted"),
    ],
)
def test_another_sign_or_unit_is_no_map(text: str, unit: str, kind: str, sentence: str) -> None:
    own, said = pose(unit, kind)
    with pytest.raises(ValueError, match=sentence):
        require_meaningful(read_map(text, own, RT1_SPACE), own, said, RT1_SPACE)


@pytest.mark.parametrize(
    ("text", "unit", "kind"),
    [
        ("gripper_closedness_action = -2 * gripper_open + 1", "m", "absolute"),
        ("gripper_closedness_action = -gripper_open", "m", "delta"),
        ("world_vector = 0.001 * position_delta", "mm", "absolute"),
        ("world_vector = 35 * position_delta", "unitless", "absolute"),
    ],
)
def test_the_same_sign_and_unit_are_mapped(text: str, unit: str, kind: str) -> None:
    own, said = pose(unit, kind)
    require_meaningful(read_map(text, own, RT1_SPACE), own, said, RT1_SPACE)


def test_what_a_held_gripper_comes_to_is_a_place() -> None:
    own = RT1_SPACE.spec()
    right, wrong = (
        read_map(f"gripper_open = {text}", own, SEVEN)
        for text in ("-0.5 * held(gripper_closedness_action) + 0.5", "-held(gripper_closedness_action)")
    )
    require_meaningful(right, own, (), SEVEN)
    with pytest.raises(ValueError, match=r"that is -0\.5 \* gripper_closedness_action \+0\.5"):
        require_meaningful(wrong, own, (), SEVEN)


def test_a_group_in_another_order_is_mapped_by_name_alone() -> None:
    names = ("pos_y", "pos_x", "pos_z")
    own = ActionSpace(name="turned", dimensions=tuple(SpaceDimension(name=name) for name in names))
    with pytest.raises(ValueError, match="onto world_vector_x, world_vector_y, world_vector_z: their order differs"):
        read_map("world_vector = pos", own.spec(), RT1_SPACE)
    (one,) = read_map("world_vector_x = pos_x", own.spec(), RT1_SPACE)
    assert one == MappedDimension(common="world_vector_x", own="pos_x")
