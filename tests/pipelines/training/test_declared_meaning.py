"""What a store declares beside its contract's id: another gripper is refused by name, another spec is said."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest

from pipelines.catalogue import load_recipe
from pipelines.training.data import open_reader, other_spec, resolved, training_contract
from preprocessing.convert import ConvertConfig, convert
from preprocessing.dataset_spec import load
from preprocessing.provenance import corrections
from preprocessing.store.episode_store import EpisodeStore
from rt_models.spec import Contract, ContractMismatch
from tests.support import two_cameras


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., EpisodeStore]:
    """A store of the same recordings under a spec in which one text is another."""
    folder = tmp_path_factory.mktemp("declared")
    source = two_cameras.source(folder / "source")

    def store(old: str = "", new: str = "") -> EpisodeStore:
        spec = two_cameras.spec(folder / "robot.yaml")
        spec.write_text(spec.read_text().replace(old, new))
        config = ConvertConfig(dataset=str(spec), encoder="hash", workers=0)
        return EpisodeStore.open(convert(str(source), str(folder / f"out-{new}"), config).store)

    return store


def trained_on(store: EpisodeStore) -> Contract:
    return training_contract(resolved(load_recipe("rt1_tiny"), [store]), [store])


def read(contract: Contract, store: EpisodeStore) -> None:
    open_reader(resolved(load_recipe("rt1_tiny"), [store]), [store], contract).close()


def test_a_model_carries_what_its_stores_declare_and_its_id_does_not_change(
    store_of: Callable[..., EpisodeStore],
) -> None:
    store = store_of()
    contract, (side,) = trained_on(store), trained_on(store).datasets
    assert (side.gripper, side.spec) == ("absolute", store.manifest.settings["spec"])
    read_again = Contract.from_json(contract.to_json())
    assert read_again.datasets[0].gripper == "absolute" and read_again.datasets[0].spec == side.spec
    older = replace(contract, datasets=(side.declared(gripper="", spec=""),))
    assert older.id == contract.id and older == contract
    assert {"gripper", "spec"}.isdisjoint(older.to_json()["datasets"][0])
    assert {"gripper", "spec"}.isdisjoint(store.contract.to_json()["datasets"][0])


def test_a_gripper_that_changes_is_not_one_that_is_held(store_of: Callable[..., EpisodeStore]) -> None:
    held, changed = store_of(), store_of("gripper: absolute", "gripper: relative")
    contract = trained_on(held)
    assert held.contract.id == changed.contract.id
    with pytest.raises(ContractMismatch, match=r"gripper: the model has absolute, .* has relative"):
        read(contract, changed)
    older = replace(contract, datasets=(contract.datasets[0].declared(gripper="", spec=""),))
    read(older, changed)  # nobody said


def test_a_store_of_another_spec_is_read_with_a_word(
    store_of: Callable[..., EpisodeStore], caplog: pytest.LogCaptureFixture
) -> None:
    before, after = store_of(), store_of("unit: closedness", "unit: closedness\n    scale: 1.5")
    contract = trained_on(before)
    read(contract, before)
    assert not caplog.records and other_spec(contract, before) is None
    with caplog.at_level(logging.WARNING):
        read(contract, after)
        read(contract, after)
    (record,) = caplog.records  # once
    assert f"another spec of two_cameras ({after.manifest.settings['spec']})" in record.getMessage()


def test_a_model_of_before_is_told_what_was_corrected_since(
    store_of: Callable[..., EpisodeStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "yaw, pitch, roll" in corrections("taco_play", load("taco_play").hash())
    assert corrections("taco_play", "of a store of before") == corrections("my_robot", "any") == ""
    assert corrections("bridge_dataset", load("bridge_dataset").hash()) == ""
    store = store_of()
    contract = trained_on(store)
    older = replace(contract, datasets=(contract.datasets[0].declared(gripper="", spec=""),))
    monkeypatch.setattr("pipelines.training.data.corrections", lambda name, spec: f"{name} turned round")
    assert other_spec(contract, store) is None
    assert "two_cameras turned round" in str(other_spec(older, store))


def test_a_stride_that_reaches_past_every_episode_is_refused(store_of: Callable[..., EpisodeStore]) -> None:
    store, experiment = store_of(), load_recipe("rt1_tiny")
    longest = max(int(shard.episode_lengths.max()) for shard in store.shards)
    with pytest.raises(ValueError, match=rf"--model.stride {longest}: the longest episode has {longest} steps"):
        resolved(replace(experiment, model=replace(experiment.model, stride=longest)), [store])
    resolved(replace(experiment, model=replace(experiment.model, stride=longest - 1)), [store])
