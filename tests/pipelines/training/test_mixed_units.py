"""Datasets that mean different things by one dimension are named before a training mixes them."""

from __future__ import annotations

from dataclasses import replace

from pipelines.training.checks import mixed_units
from preprocessing import dataset_spec
from rt_models.action_space import DimensionMeaning, Kind, rt1_action_spec
from rt_models.spec import ActionStatistics, DatasetContract, Identity

NAMES = rt1_action_spec().names
ZEROS = (0.0,) * len(NAMES)


def contract(name: str) -> DatasetContract:
    spec = dataset_spec.load(name)
    statistics = ActionStatistics(count=1, mean=ZEROS, std=ZEROS, minimum=ZEROS, maximum=ZEROS, q01=ZEROS, q99=ZEROS)
    return DatasetContract(
        name=name,
        version="0.1.0",
        control_hz=3,
        action_mask=spec.action_mask,
        units=spec.units,
        statistics=statistics,
        transform=Identity().fit(rt1_action_spec(), statistics),
    )


def test_axis_angle_differences_beside_rotations_are_named() -> None:
    (sentence,) = mixed_units([contract("bc_z"), contract("bridge"), contract("viola")], NAMES)
    assert sentence.startswith("rotation_delta_x, rotation_delta_y, rotation_delta_z is not the same in all datasets")
    assert "difference of axis-angle components in bc_z, rad in bridge" in sentence and "viola" not in sentence


def test_the_same_units_and_unitless_ones_say_nothing() -> None:
    assert mixed_units([contract(name) for name in ("fractal20220817_data", "bridge", "roboturk")], NAMES) == []


def test_a_dataset_without_the_dimension_says_nothing_of_it() -> None:
    assert mixed_units([contract("bc_z"), contract("metaworld_sample")], NAMES) == []


def test_a_place_beside_a_displacement_is_named() -> None:
    one = contract("fractal20220817_data")
    declared: tuple[Kind, ...] = ("delta", "absolute")
    kinds = {kind: replace(one, name=kind, meanings=(DimensionMeaning(kind=kind),) * 11) for kind in declared}
    sentences = mixed_units(list(kinds.values()), NAMES)
    assert any("m delta in delta, m absolute in absolute" in sentence for sentence in sentences)
    assert mixed_units([kinds["delta"], replace(kinds["delta"], name="other")], NAMES) == []
