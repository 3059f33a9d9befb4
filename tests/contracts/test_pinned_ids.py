"""Ids of the 11-D single-camera contract as they stand in stores, checkpoints and registered models that exist.

A change of any of these makes finished stores and runs unreadable.
"""

from __future__ import annotations

import pytest

from pipelines.catalogue import load_recipe
from preprocessing import dataset_spec
from preprocessing.conversion.manifest import store_contract
from rt_models.spec import ActionStatistics, Contract, ImageRecipe

DATASETS = {  # name -> (hash of the spec, id of a store's contract)
    "austin_buds_dataset_converted_externally_to_rlds": ("409027db31c06e29", "50eae51c7d7646de"),
    "austin_sailor_dataset_converted_externally_to_rlds": ("840c89cd7634462b", "ece04d4a21197a76"),
    "austin_sirius_dataset_converted_externally_to_rlds": ("b7ba651f56c7f67b", "753b0a87f4786d4a"),
    "bc_z": ("e819a4c42a7fe845", "1917eaccb729abf0"),
    "berkeley_autolab_ur5": ("841cb5d57b4ec035", "1103689afc90644b"),
    "berkeley_cable_routing": ("a2e898d9f1da4bdc", "31c47ac293e9d37f"),
    "berkeley_fanuc_manipulation": ("14744fb86ac6f61c", "9706c437665f70b8"),
    "bridge": ("0978171cd86195b9", "8ca2955ad5f87471"),
    "bridge_data_msr": ("ea57b67e394eaf3a", "6ecba49c1f2cb403"),
    "bridge_dataset": ("8a555072b0bf5d22", "56c919d65178261f"),
    "fractal20220817_data": ("eeaff8fa979faf08", "6102d384a5ed7c09"),
    "jaco_play": ("037785c45e64e59a", "b1646bf9e36ff1de"),
    "kuka": ("676f723f49070bcb", "f2081147fbdab566"),
    "language_table": ("7da63ae78916fbda", "f13a80d779045cee"),
    "metaworld_sample": ("309b81d3b4ea2916", "9a63b2e0ce6f0a06"),
    "mt_opt": ("135fa821bc29aeea", "7da2a766f558831e"),
    "nyu_door_opening_surprising_effectiveness": ("11ec62a29ba872f2", "3223bb65dcf42687"),
    "nyu_franka_play_dataset_converted_externally_to_rlds": ("108dc8c2bef3789a", "bb3ef83de97f71ad"),
    "roboturk": ("f6c45f58424e9c77", "2defc16795906171"),
    "stanford_hydra_dataset_converted_externally_to_rlds": ("64e0380822807ff8", "97a5ef83d62a0943"),
    "taco_play": ("68451b9bc7425666", "06e981e943de0ea9"),
    "toto": ("93e53473e3793caf", "eb290fec6fe358cc"),
    "utaustin_mutex": ("cb5300e9cef70d43", "44c1dc6301361ae3"),
    "viola": ("3791d5373ab043dd", "0173ae180be6260d"),
}
RECIPES = {  # name -> id of the contract that a training on the sample's store has
    "rt1_bridge_overfit": "bae2b25a4aa3c923",
    "rt1_fractal": "9a63b2e0ce6f0a06",
    "rt1_metaworld": "bae2b25a4aa3c923",
    "rt1_metaworld_mt10": "bae2b25a4aa3c923",
    "rt1_metaworld_mt50": "bae2b25a4aa3c923",
    "rt1_metaworld_mt6": "bae2b25a4aa3c923",
    "rt1_tiny": "bae2b25a4aa3c923",
    "rt1x_finetune": "2f87a448e67b51e8",
    "rt2_paligemma_3b": "fb3bb5ff8ea7a491",
    "rt2_scratch": "fb3bb5ff8ea7a491",
    "rt2_tiny": "fb3bb5ff8ea7a491",
}
STATISTICS = ActionStatistics(
    count=1000,
    mean=tuple(0.01 * place for place in range(11)),
    std=(0.1,) * 11,
    minimum=(-1.0,) * 11,
    maximum=(1.0,) * 11,
    q01=(-0.9,) * 11,
    q99=(0.9,) * 11,
)
IMAGE = ImageRecipe(camera="image", height=256, width=320, resize="pad")


def of_dataset(name: str) -> Contract:
    spec = dataset_spec.load(name)
    return store_contract(spec, version="0.1.0", encoder="hash", image=IMAGE, control_hz=3.0, statistics=STATISTICS)


@pytest.mark.parametrize("name", DATASETS)
def test_the_spec_and_the_store_s_contract_keep_their_ids(name: str) -> None:
    assert (dataset_spec.load(name).hash(), of_dataset(name).id) == DATASETS[name]


@pytest.mark.parametrize("name", RECIPES)
def test_the_contract_of_a_training_keeps_its_id(name: str) -> None:
    experiment = load_recipe(name)
    action = experiment.model.action_spec()
    assert of_dataset("metaworld_sample").trained_with(action, experiment.scaling).id == RECIPES[name]


def test_contract_ids_survive_a_change_of_nothing() -> None:
    contract = of_dataset("bridge_dataset")
    assert Contract.from_json(contract.to_json()) == contract
    assert "meanings" not in contract.to_json()["datasets"][0]
