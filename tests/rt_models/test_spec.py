"""Laws of the contracts."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_models.action_space import ARM, ActionDimension, rt1_action_spec, seven_d_action_spec
from rt_models.spec import (
    ActionStatistics,
    Bounds,
    Contract,
    ContractMismatch,
    DatasetContract,
    Identity,
    ImageRecipe,
    Quantiles,
    SimulatedSource,
    merge_contracts,
)

SPEC = rt1_action_spec()
FINITE = st.floats(-100, 100, width=32)


@st.composite
def statistics(draw: st.DrawFn) -> ActionStatistics:
    """Of random values, some dimensions constant."""
    seed, constant = draw(st.integers(0, 2**32 - 1)), draw(st.lists(st.booleans(), min_size=11, max_size=11))
    values = np.random.default_rng(seed).normal(size=(50, 11)) * draw(st.floats(1e-4, 100))
    values[:, constant] = draw(FINITE)
    values[:, 0] = np.abs(values[:, 0]).round() % 3
    rows = (values.mean(0), values.std(0), values.min(0), values.max(0), *np.quantile(values, [0.01, 0.99], axis=0))
    mean, std, minimum, maximum, q01, q99 = (tuple(map(float, row)) for row in rows)
    return ActionStatistics(count=50, mean=mean, std=std, minimum=minimum, maximum=maximum, q01=q01, q99=q99)


def contract(found: ActionStatistics, name: str = "a", **changes: object) -> Contract:
    dataset = DatasetContract(
        name=name,
        version="1.0.0",
        control_hz=5.0,
        action_mask=(False,) + (True,) * 7 + (False,) * 3,
        units=tuple(d.unit for d in SPEC.dimensions),
        statistics=found,
        transform=Identity().fit(SPEC, found),
    )
    image = ImageRecipe(camera="image", height=64, width=64)
    return replace(Contract(action=SPEC, encoder="hash-512", image=image, datasets=(dataset,)), **changes)  # type: ignore[arg-type]


def test_how_a_simulator_drew_the_data_is_kept_and_is_no_part_of_the_id() -> None:
    plain = contract(ZEROS)
    source = SimulatedSource(
        simulator="metaworld", view="top", height=64, width=64, jpeg_quality=40, control_hz=5, max_steps=31
    )
    drawn = replace(plain, datasets=(replace(plain.datasets[0], simulated=source),))
    assert drawn.id == plain.id and drawn == plain
    assert Contract.from_json(json.loads(json.dumps(drawn.to_json()))).datasets[0].simulated == source
    assert "simulated" not in plain.to_json()["datasets"][0]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"jpeg_quality": 101}, "jpeg_quality must be a whole number from 1 to 100"),
        ({"max_steps": True}, "max_steps must be a whole number above 0, got True"),
        ({"view": 3}, "view must be a word"),
        ({"colour": "red"}, "no record of a simulator"),
    ],
)
def test_a_record_of_another_form_is_refused(change: dict[str, object], words: str) -> None:
    record = {"simulator": "metaworld", "view": "side", "jpeg_quality": 9, "control_hz": 10, "max_steps": 62}
    with pytest.raises(ValueError, match=words):
        SimulatedSource.from_json({**record, "height": 96, "width": 96, **change})


ZEROS = ActionStatistics(count=1, **dict.fromkeys(("mean", "std", "minimum", "maximum", "q01", "q99"), (0.0,) * 11))


@given(statistics(), st.sampled_from([Identity(), Bounds(), Quantiles()]), st.integers(0, 2**32 - 1))
def test_every_scaling_is_undone_by_its_inverse(found: ActionStatistics, scaling: Quantiles, seed: int) -> None:
    transform = scaling.fit(SPEC, found)
    inside = np.random.default_rng(seed).uniform(found.minimum, found.maximum, size=(20, 11))
    np.testing.assert_allclose(transform.invert(transform.apply(inside)), inside, rtol=1e-4, atol=1e-4)


@given(statistics())
def test_bounds_fill_the_range_that_is_binned_and_classes_stay_classes(found: ActionStatistics) -> None:
    transform, (low, high) = Bounds().fit(SPEC, found), SPEC.bounds()
    ends = transform.apply(np.array([found.minimum, found.maximum]))
    varies = found.varies() & ~SPEC.discrete() & (np.ptp([found.minimum, found.maximum], axis=0) > 1e-9)
    np.testing.assert_allclose(ends[:, varies], np.stack([low, high])[:, varies], rtol=1e-4, atol=1e-4)
    assert (ends[:, 0] == np.float32([found.minimum[0], found.maximum[0]])).all()


def test_a_rare_command_is_not_scaled_to_infinity() -> None:
    found = replace(ZEROS, maximum=(0.0,) * 7 + (1.0,) + (0.0,) * 3)
    assert Quantiles().fit(SPEC, found).apply(np.eye(11)[7])[7] == 1.0


@given(statistics())
def test_a_contract_survives_json_and_its_id_names_its_content(found: ActionStatistics) -> None:
    whole = contract(found).trained_with(rt1_action_spec(bins=512, world_vector_limit=2.0), Quantiles())
    again = Contract.from_json(whole.to_json())
    assert again == whole and again.id == whole.id
    assert replace(whole, encoder="other").id != whole.id


def test_a_mismatch_prints_both_sides() -> None:
    model, store = contract(ZEROS), contract(ZEROS, encoder="universal-sentence-encoder-large/5")
    with pytest.raises(ContractMismatch, match=r"hash-512.*there has universal-sentence-encoder-large/5"):
        model.require_readable(store, where="there")
    with pytest.raises(ContractMismatch, match=r"\['a'\], there has b"):
        model.require_readable(contract(ZEROS, name="b"), where="there")
    with pytest.raises(ContractMismatch, match=r"rt1-11d.*end-effector-7d"):
        model.require_readable(replace(store, action=seven_d_action_spec()), where="there")
    with pytest.raises(ContractMismatch, match="encoder is hash-512 in a and universal"):
        merge_contracts([model, store])
    wide = replace(contract(ZEROS, name="b"), image=ImageRecipe(camera="image", height=64, width=80, resize="pad"))
    words = (
        r"64x64 of camera image, as recorded in a and 64x80 of camera image, resized by pad in b; .* same --image-size"
    )
    with pytest.raises(ContractMismatch, match=words):
        merge_contracts([model, wide])
    with pytest.raises(ContractMismatch, match="a is given more than once"):
        merge_contracts([model, model])
    model.require_readable(contract(ZEROS), where="there")
    with pytest.raises(ContractMismatch, match=r"bound to no dataset.*rtp import-weights \.\.\. --data there"):
        replace(model, datasets=()).require_readable(store, where="there")


def test_what_a_dataset_does_not_have_is_neutral_not_the_model_s_guess() -> None:
    """Stores written before absent classes were the arm's have 0 there, which would end every episode."""
    side = replace(contract(replace(ZEROS, mean=(0.0,) + (9.0,) * 10)).datasets[0], action_mask=(False,) * 11)
    rest, gripper, grip = [0.0] * 3, 9.0, SPEC.names.index("gripper_closedness_action")
    assert side.completed(np.full((2, 11), 3.0), SPEC).tolist() == [[ARM, *rest, *rest, gripper, *rest]] * 2
    only_gripper = replace(side, action_mask=(False,) * grip + (True,) + (False,) * (10 - grip))
    assert only_gripper.completed(np.full(11, 3.0), SPEC).tolist() == [ARM, *rest, *rest, 3.0, *rest]


def test_where_no_value_is_neutral_there_is_none() -> None:
    joint = ActionDimension(name="joint_position_0", low=-1, high=1, unit="rad")
    assert np.isnan(joint.neutral(0.5)) and joint.class_names == ()
    assert [d.class_names for d in SPEC.dimensions if d.class_names] == [("terminate", "arm", "base")]


def test_a_dataset_is_guessed_only_where_there_is_no_choice() -> None:
    one = contract(ZEROS)
    two = merge_contracts([one, contract(ZEROS, name="b")])
    assert one.dataset() == one.datasets[0] and two.dataset("b") == two.datasets[1]
    for name, words in ((None, "name the dataset, one of a, b"), ("", "not in this contract: name one of a, b")):
        with pytest.raises(ValueError, match=words):
            two.dataset(name)
    with pytest.raises(ValueError, match="bound to no dataset"):
        replace(one, datasets=()).dataset()


@pytest.mark.parametrize("changes", [{"bins": 1}, {"bins": 2}])
def test_too_few_bins_for_the_classes_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 3 are needed"):
        replace(SPEC, **changes)  # type: ignore[arg-type]
