"""The constants of RT-1-X: hand-computed rows, their inverse, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rt_models.action_scaling import _RT1X, AffineTransform, Bounds, Quantiles
from rt_models.action_space import rt1_action_spec, seven_d_action_spec
from rt_models.spec import RT1X, ActionStatistics, Contract, DatasetContract, Identity, ImageRecipe

SPEC = rt1_action_spec(bins=512, world_vector_limit=2.0)
ZEROS = ActionStatistics(count=1, **dict.fromkeys(("mean", "std", "minimum", "maximum", "q01", "q99"), (0.0,) * 11))
PHYSICAL = [1, 0.01, -0.02, 0.04, 0.1, -0.2, 0.05, -1, 0, 0, 0]
MODEL = {  # by hand from the released notebook: bridge [-.05, .05] to +-1.75 and [-.25, .25] to +-1.4
    "fractal20220817_data": PHYSICAL,
    "bridge": [1, 0.35, -0.7, 1.4, 0.56, -1.12, 0.28, -1, 0, 0, 0],
    "jaco_play": [1, 0.0738416, -0.1467334, 0.3939923, 0.1, -0.2, 0.05, -1, 0, 0, 0],
    "nyu_door_opening_surprising_effectiveness": [1, 0.2, -0.4, 0.8, 1.5, -3, 0.75, -1, 0, 0, 0],
    "viola": [1, 0.0175, -0.035, 0.07, 0.3, -0.6, 0.15, -1, 0, 0, 0],
    "berkeley_autolab_ur5": [1, 1, -2, 4, 1.5, -3, 0.75, -1, 0, 0, 0],
    "toto": [1, 0.02, -0.04, 0.08, 0.1, -0.2, 0.05, 1, 0, 0, 0],  # an open gripper, -1 in the store, was 1
}


@pytest.mark.parametrize("dataset", MODEL)
def test_hand_computed_rows(dataset: str) -> None:
    transform = RT1X().fit(SPEC, ZEROS, dataset)
    np.testing.assert_allclose(transform.apply(np.array(PHYSICAL)), MODEL[dataset], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dataset", sorted(_RT1X))
def test_every_one_is_undone_by_its_inverse(dataset: str) -> None:
    transform, values = RT1X().fit(SPEC, ZEROS, dataset), np.random.default_rng(0).normal(size=(50, 11))
    np.testing.assert_allclose(transform.invert(transform.apply(values)), values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dataset", ["kuka", "language_table", "taco_play", "metaworld_sample", ""])
def test_what_was_never_released_is_refused(dataset: str) -> None:
    with pytest.raises(ValueError, match=r"RT-1-X has no scaling that fits .* leave it out or choose another"):
        RT1X().fit(SPEC, ZEROS, dataset)


def test_another_action_space_is_refused() -> None:
    with pytest.raises(ValueError, match=r"RT-1-X acts in rt1-11d, not in end-effector-7d"):
        RT1X().fit(seven_d_action_spec(), ZEROS, "toto")


def test_a_contract_takes_the_scaling_of_each_dataset() -> None:
    side = DatasetContract(
        name="bridge",
        version="0.1.0",
        control_hz=5.0,
        action_mask=(True,) * 11,
        units=tuple(dimension.unit for dimension in SPEC.dimensions),
        statistics=ZEROS,
        transform=Identity().fit(SPEC, ZEROS),
    )
    image = ImageRecipe(camera="image", height=256, width=320)
    stores = Contract(action=SPEC, encoder="hash-512", image=image, datasets=(side, replace(side, name="viola")))
    trained = stores.trained_with(SPEC, RT1X())
    assert [dataset.transform.scale[1] for dataset in trained.datasets] == [35.0, 1.75]
    assert {dataset.transform.name for dataset in trained.datasets} == {"rt-1-x"} and trained.id != stores.id


def statistics(low: float, high: float, q01: float, q99: float) -> ActionStatistics:
    """Of eleven dimensions alike."""
    ends = {"minimum": low, "maximum": high, "q01": q01, "q99": q99, "mean": 0.0, "std": 1.0}
    return ActionStatistics(count=9, **{name: (value,) * 11 for name, value in ends.items()})


@pytest.mark.parametrize(
    ("scaling", "low", "high"),
    [(Bounds(), -4.0, 12.0), (Quantiles(), -1.0, 3.0)],
)
def test_a_store_s_range_is_spread_over_the_dimension_and_classes_stay(
    scaling: Bounds | Quantiles, low: float, high: float
) -> None:
    transform = scaling.fit(SPEC, statistics(-4, 12, -1, 3))
    ends = transform.apply(np.array([[low] * 11, [high] * 11]))
    for place, dimension in enumerate(SPEC.dimensions):
        expected = [low, high] if dimension.discrete else [dimension.low, dimension.high]
        np.testing.assert_allclose(ends[:, place], expected, rtol=1e-5, atol=1e-6)
    assert transform.name == {"Bounds": "bounds", "Quantiles": "q01-q99"}[type(scaling).__name__]


def test_a_rare_command_is_scaled_by_its_bounds_and_a_constant_not_at_all() -> None:
    rare = Quantiles().fit(SPEC, statistics(-1, 3, 0, 0))
    np.testing.assert_allclose(rare.scale[1], (SPEC.dimensions[1].high - SPEC.dimensions[1].low) / 4)
    narrow = Quantiles().fit(SPEC, statistics(-1, 3, 0, 1e-6))
    np.testing.assert_allclose(narrow.scale[1], (SPEC.dimensions[1].high - SPEC.dimensions[1].low) / 1e-6)
    assert Bounds().fit(SPEC, statistics(2, 2, 2, 2)).scale == (1.0,) * 11
    assert Bounds().fit(SPEC, statistics(2, 2 + 0.9e-9, 2, 2)).offset == (0.0,) * 11
    assert Bounds().fit(SPEC, statistics(0, 1e-9, 0, 0)).scale[1] > 1e6


def test_a_dimension_varies_where_its_ends_differ() -> None:
    assert not statistics(2, 2, 0, 1).varies().any() and statistics(2, 2.1, 0, 0).varies().all()


def test_a_transform_is_invertible_or_refused() -> None:
    with pytest.raises(ValueError, match=r"transform x: 2 scales for 1 offsets"):
        AffineTransform(name="x", scale=(1.0, 2.0), offset=(0.0,))
    for scale in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"transform x: every scale must be finite and not 0, got \(1\.0, "):
            AffineTransform(name="x", scale=(1.0, scale), offset=(0.0, 0.0))
    halved = AffineTransform(name="x", scale=(2.0,), offset=(1.0,))
    assert halved.apply(np.array([3.0])).tolist() == [7.0] and halved.invert(np.array([7.0])).tolist() == [3.0]
    assert halved.apply(np.array([3.0])).dtype == halved.invert(np.array([7.0])).dtype == np.float32
    assert Identity().fit(SPEC, ZEROS).name == "identity" and Identity().fit(SPEC, ZEROS).offset == (0.0,) * 11
