"""Action spaces as data: their identity, the shipped ones, and scaling by statistics."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_models.action_space import RT1_SPACE, SPACES, ActionSpace, SpaceDimension, rt1_action_spec
from rt_models.spec import ActionStatistics, Bounds, Identity, Quantiles

NAMES = st.lists(st.from_regex(r"[a-z]{1,4}(_[xyz0-9])?", fullmatch=True), min_size=1, max_size=12, unique=True)


def own(*names: str) -> ActionSpace:
    return ActionSpace(name="own", dimensions=tuple(SpaceDimension(name=name) for name in names))


def statistics(low: np.ndarray, high: np.ndarray) -> ActionStatistics:
    middle, size = tuple(((low + high) / 2).tolist()), len(low)
    ends = tuple(low.tolist()), tuple(high.tolist())
    return ActionStatistics(
        count=9, mean=middle, std=(1.0,) * size, minimum=ends[0], maximum=ends[1], q01=ends[0], q99=ends[1]
    )


def test_rt1_s_space_is_its_spec_whatever_the_bins() -> None:
    for bins, limit in ((256, 1.0), (512, 2.0)):
        spec = RT1_SPACE.spec(bins=bins, world_vector_limit=limit)
        assert spec == rt1_action_spec(bins=bins, world_vector_limit=limit) and spec.space() == RT1_SPACE
    assert RT1_SPACE.is_rt1 and not any(space.is_rt1 for name, space in SPACES.items() if name != "rt1-11d")


def test_the_shipped_spaces() -> None:
    sizes = {name: space.size for name, space in SPACES.items()}
    assert sizes == {
        "rt1-11d": 11,
        "end-effector-7d": 7,
        "joint-velocity-8d": 8,
        "joints-7d": 7,
        "two-arms-14d": 14,
        "actuators-6d": 6,
        "actuators-21d": 21,
    }
    assert list(SPACES["two-arms-14d"].groups()) == [
        "left_joint",
        "left_gripper_open",
        "right_joint",
        "right_gripper_open",
    ]


@given(NAMES)
def test_groups_cover_every_dimension_once(names: list[str]) -> None:
    places = [place for group in own(*names).groups().values() for place in range(len(names))[group]]
    assert sorted(places) == list(range(len(names)))


@given(NAMES.filter(lambda names: len(names) > 1))
def test_the_name_is_no_part_of_the_identity_and_the_order_is(names: list[str]) -> None:
    space = own(*names)
    assert space.spec().same_space(replace(space, name="other").spec(bins=16))
    assert not space.spec().same_space(own(*reversed(names)).spec())
    assert not space.spec().same_space(replace(space, gripper="1 is open, 0 is closed").spec())
    first = SpaceDimension(name=names[0], classes=("a", "b"))
    with_class = replace(space, dimensions=(first, *space.dimensions[1:]))
    others = replace(first, classes=("a", "c"))
    assert not with_class.spec().same_space(space.spec())
    assert not with_class.spec().same_space(replace(space, dimensions=(others, *space.dimensions[1:])).spec())


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: own("a", "b", "a"), "a stands there twice"),
        (lambda: own(), "needs a name and dimensions"),
        (lambda: own("a b"), "a name has letters, digits and _|a name is letters"),
        (lambda: SpaceDimension(name="mode", classes=("on",)), "needs two different classes"),
        (lambda: replace(own("a"), gripper="up"), "gripper must be one of"),
        (lambda: SPACES["joints-7d"].spec(world_vector_limit=2), "bounds RT-1's world vector, and joints-7d"),
    ],
)
def test_what_is_no_space_is_refused(build, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


def test_only_statistics_bound_another_space() -> None:
    spec = SPACES["joints-7d"].spec()
    found = statistics(np.full(7, -0.5), np.full(7, 2.0))
    with pytest.raises(ValueError, match=r"bound those of joints-7d: set scaling Quantiles"):
        Identity().fit(spec, found, "lab")
    for scaling in (Quantiles(), Bounds()):
        ends = scaling.fit(spec, found).apply(np.stack([np.full(7, -0.5), np.full(7, 2.0)]))
        np.testing.assert_allclose(ends, [[-1] * 7, [1] * 7], atol=1e-6)


@given(st.floats(-100, 100, width=32))
def test_a_joint_that_never_moves_is_answered_where_it_stands(place: float) -> None:
    spec = SPACES["joints-7d"].spec()
    transform = Quantiles().fit(spec, statistics(np.full(7, place), np.full(7, place)))
    np.testing.assert_allclose(transform.apply(np.full(7, place)), 0, atol=1e-3)
    for answered in (-1.0, 0.3, 1.0):
        np.testing.assert_allclose(transform.invert(np.full(7, answered)), place, atol=1e-5)


def test_only_rt1_s_own_classes_have_its_neutral_class() -> None:
    (number,) = own("terminate_episode").spec().dimensions
    classes = SpaceDimension(name="terminate_episode", classes=("go on", "stop"))
    (stopping,) = ActionSpace(name="own", dimensions=(classes,)).spec().dimensions
    assert number.class_names == () and own("terminate_episode").spec().space() == own("terminate_episode")
    assert math.isnan(number.neutral(0)) and math.isnan(stopping.neutral(0))
    assert RT1_SPACE.spec().dimensions[0].neutral(0) == 1
