"""Shares of a mixture, and the published figures of RT-1-X."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing import dataset_spec
from preprocessing.mixture import Mixture, MixtureConfig, load
from preprocessing.mixtures.rt1x import MIXTURE

WEIGHTS = st.lists(st.floats(0.01, 200), min_size=1, max_size=12)


@given(weights=WEIGHTS, data=st.data())
def test_the_unit_decides_whether_size_counts(weights: list[float], data: st.DataObject) -> None:
    named = {str(i): weight for i, weight in enumerate(weights)}
    steps = {name: data.draw(st.integers(1, 10**9)) for name in named}
    per_sample = Mixture(name="m", unit="per_sample", weights=named)
    assert per_sample.shares(steps) == per_sample.shares(dict.fromkeys(steps, 7))
    one_each = Mixture(name="m", unit="per_transition", weights=dict.fromkeys(named, 3.0))
    assert one_each.shares(steps) == pytest.approx({n: c / sum(steps.values()) for n, c in steps.items()})


def test_the_published_shares() -> None:
    all_twelve = dict.fromkeys(MIXTURE.weights, 1000)
    assert len(all_twelve) == 12 and set(all_twelve) <= set(dataset_spec.names())
    assert MIXTURE.shares(all_twelve)["fractal20220817_data"] == pytest.approx(0.464, abs=5e-4)
    released = {name: steps for name, steps in all_twelve.items() if name not in ("kuka", "language_table")}
    percent = {name: round(100 * share, 1) for name, share in MIXTURE.shares(released).items()}
    assert percent == {
        "fractal20220817_data": 54.9,
        "bridge": 18.3,
        "jaco_play": 7.3,
        "berkeley_cable_routing": 7.3,
        "roboturk": 3.7,
        "taco_play": 1.8,
        "nyu_door_opening_surprising_effectiveness": 1.8,
        "berkeley_autolab_ur5": 1.8,
        "toto": 1.8,
        "viola": 1.1,
    }


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ({"bridge_dataset": 5}, r"rt1x has no weight for 'bridge_dataset': its datasets are fractal"),
        ({}, "rt1x needs at least one store"),
        ({"viola": 0}, "the store of viola has no steps"),
    ],
)
def test_stores_that_do_not_fit(steps: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MIXTURE.shares(steps)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_that_cannot_be(weight: float) -> None:
    with pytest.raises(ValueError, match="every weight must be above 0"):
        Mixture(name="m", unit="per_sample", weights={"a": weight})


def test_a_run_asks_by_name_by_weight_or_not_at_all() -> None:
    steps = {"bridge": 100, "viola": 300}
    assert MixtureConfig().shares(steps) is None
    assert MixtureConfig(weights={"bridge": 3, "viola": 1}).shares(steps) == {"bridge": 0.75, "viola": 0.25}
    transitions = MixtureConfig(unit="per_transition", weights={"bridge": 3, "viola": 1})
    assert transitions.shares(steps) == {"bridge": 0.5, "viola": 0.5}
    assert MixtureConfig(name="rt1x").shares(steps) == pytest.approx({"bridge": 50 / 53, "viola": 3 / 53})
    assert MixtureConfig(name="rt1x", weights={"viola": 50}).shares(steps) == {"bridge": 0.5, "viola": 0.5}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MixtureConfig(name="rt1-x"), "there is no mixture 'rt1-x': did you mean 'rt1x'"),
        (MixtureConfig(weights={"bridge": 1, "brigde": 1}), "names 'brigde', which no store holds"),
        (MixtureConfig(weights={"bridge": 1}), "has no weight for 'viola'"),
        (MixtureConfig(weights={"bridge": 1, "viola": 0}), "every weight must be above 0 and finite, that of viola"),
        (MixtureConfig(weights={"bridge": 1, "viola": -1}), "that of viola is -1"),
    ],
)
def test_a_run_that_asks_wrongly_is_told(config: MixtureConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.shares({"bridge": 100, "viola": 300})


PUBLISHED_ALIKE = {"fractal20220817_data": 0.54087122203, "kuka": 0.8341046294, "language_table": 0.1, "bc_z": 0.2}


@pytest.mark.parametrize("name, count", [("octo", 25), ("openvla", 27)])
def test_the_mixtures_of_octo_and_openvla_weigh_by_transitions(name: str, count: int) -> None:
    mixture = load(name)
    assert (mixture.name, mixture.unit, len(mixture.weights)) == (name, "per_transition", count)
    assert PUBLISHED_ALIKE.items() <= mixture.weights.items()
    shares = mixture.shares({"bridge_dataset": 2000, "viola": 1000})
    assert shares == pytest.approx({"bridge_dataset": 0.5, "viola": 0.5})


def test_openvla_leaves_the_wrist_camera_out_and_adds_three() -> None:
    octo, openvla = (set(load(name).weights) for name in ("octo", "openvla"))
    assert octo - openvla == {"nyu_door_opening_surprising_effectiveness"}
    assert openvla - octo == {"fmb_dataset", "dobbe", "droid"}
