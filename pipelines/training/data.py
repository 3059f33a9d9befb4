"""From an experiment and its stores to batches: the contract of the run, its reader and its loader."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import overload

from cluster.context import WorkerContext
from pipelines.config.experiment import Experiment
from pipelines.families.models import ModelConfig, family_of
from preprocessing.loading.loader import Loader, LoaderConfig, Reader
from preprocessing.loading.mapped_store import MappedStore
from preprocessing.loading.relabelling import RelabelledStore
from preprocessing.mixture import MixtureConfig
from preprocessing.provenance import corrections
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.robot_inputs import store_inputs
from preprocessing.store.web_store import Store, robot_stores
from rt_models.spec import MAIN_CAMERA, Contract, StoreInputs, merge_contracts, union_of_states


def resolved(experiment: Experiment, stores: Sequence[Store]) -> Experiment:
    """The experiment with the settings that depend on the data: the action space, or a tokenizer learnt from them.

    Raises ValueError if the stores and the kind of model do not fit.
    """
    family, robots = family_of(experiment.model), robot_stores(stores)
    if robots:
        common = [_in_common_space(store, experiment.mixture, robots).contract for store in robots]
        space = merge_contracts(common).action.space()
        model = _with_state(family.in_space(experiment.model, space), robots, experiment.mixture)
        experiment = replace(experiment, model=model)
    return family.resolved(experiment, stores)


def _with_state(model: ModelConfig, robots: Sequence[EpisodeStore], mixture: MixtureConfig) -> ModelConfig:
    """The model's config with the values of the state that it reads, where it reads one."""
    family = family_of(model)
    asked = family.state(model)
    if asked is None:
        if mixture.states:
            raise ValueError("mixture.states names values of a state, and the model reads none: set model.state")
        return model
    sides = {store.name: _inputs(store, mixture, cameras=(), state=True).state for store in robots}
    unknown = [name for name in mixture.states if sides.get(name) is None]
    if unknown:
        there = ", ".join(name for name, side in sides.items() if side is not None) or "none"
        raise ValueError(f"mixture.states names {unknown[0]!r}, and the stores that have a state are {there}")
    return family.with_state(model, union_of_states(sides, asked.names))


def _inputs(store: EpisodeStore, mixture: MixtureConfig, *, cameras: Sequence[str], state: bool) -> StoreInputs:
    """What the store has of them, values of its state under the common names of the mixture."""
    found, names = store_inputs(store, cameras=cameras, state=state), mixture.states.get(store.name)
    if found.state is None or names is None:
        return found
    try:
        return replace(found, state=found.state.renamed(names))
    except ValueError as error:
        raise ValueError(f"mixture.states of {store.name}: {error}") from None


def training_contract(experiment: Experiment, stores: Sequence[Store]) -> Contract:
    """The contract a model trained on `stores` has. Raises ContractMismatch if they cannot be mixed."""
    robots = robot_stores(stores)
    if not robots:
        raise ValueError("no store of robot episodes is given: what actions mean comes from them")
    _require_known(experiment.loader, robots)
    family_of(experiment.model).sample_shares(experiment, stores)
    mixture = experiment.mixture
    merge_contracts([_in_common_space(store, mixture, robots).contract for store in robots])  # before states are read
    seen = [_in_common_space(_relabelled(store, experiment.loader), mixture, robots) for store in robots]
    merged = merge_contracts([store.contract for store in seen])
    empty = [dataset.name for dataset in merged.datasets if not dataset.statistics.count]
    if empty:
        raise ValueError(f"the store of {empty[0]} has no step to train on, all are terminal: leave it out of --data")
    action = experiment.model.action_spec()
    if not action.same_space(merged.action):
        raise ValueError(f"the model acts in {action.name}, the stores hold {merged.action.name}")
    contract = merged.trained_with(action, experiment.scaling)
    family = family_of(experiment.model)
    history = {"num_steps": family.num_frames(experiment.model), "stride": family.stride(experiment.model)}
    reading = _reading(contract, experiment.model, robots, mixture)
    return declared(replace(reading, **history), robots)


def _reading(
    contract: Contract, model: ModelConfig, robots: Sequence[EpisodeStore], mixture: MixtureConfig
) -> Contract:
    """The contract with what the model reads of these stores beside the main camera."""
    family = family_of(model)
    cameras, state = family.cameras(model), family.state(model)
    if cameras == (MAIN_CAMERA,) and state is None:
        return contract
    inputs = [_inputs(store, mixture, cameras=cameras, state=state is not None) for store in robots]
    return contract.reading(cameras, () if state is None else state.names, inputs)


def require_readable(contract: Contract, store: EpisodeStore) -> None:
    """Raise ContractMismatch, or ValueError for a camera that the store was made without, unless a model under this
    contract can read the store."""
    roles = [recipe.camera for recipe in contract.cameras]
    inputs = store_inputs(store, cameras=roles, state=bool(contract.state)) if roles or contract.state else None
    contract.require_readable(declared(store.contract, [store]), where=store.root, inputs=inputs)
    if sentence := other_spec(contract, store):
        _warn_once(sentence)


def declared(contract: Contract, robots: Sequence[EpisodeStore]) -> Contract:
    """The contract with what the stores of its datasets declare beside it: the gripper, and the hash of the spec."""
    of_name = {store.name: store.manifest for store in robots}
    sides = (
        side.declared(gripper=found.gripper, spec=found.settings.get("spec", "")) if found is not None else side
        for side, found in ((side, of_name.get(side.name)) for side in contract.datasets)
    )
    return replace(contract, datasets=tuple(sides))


def other_spec(contract: Contract, store: EpisodeStore) -> str | None:
    """A sentence where the store was made with another dataset spec than the one that the model was trained on, which
    may have changed what its numbers mean; None where nothing is known of that."""
    trained_on, now = contract.dataset(store.name).spec, store.manifest.settings.get("spec", "")
    if trained_on and now and trained_on != now:
        return (
            f"{store.root} was made with another spec of {store.name} ({now}) than the model was trained on "
            f"({trained_on}): if signs, scales or the order of values changed in between, its actions mean something "
            f"else to the model"
        )
    corrected = corrections(store.name, now) if not trained_on else ""
    return f"{store.root} and a model of before: {corrected}" if corrected else None


@cache
def _warn_once(sentence: str) -> None:
    logging.warning(sentence)


def _require_known(config: LoaderConfig, robots: Sequence[EpisodeStore]) -> None:
    """Raise ValueError for a dataset or step flag of the loader's settings that no store has."""
    datasets = dict.fromkeys(store.name for store in robots)
    flags = dict.fromkeys(flag for store in robots for flag in store.manifest.flag_names)
    for setting, names, known in (("relabel", config.relabel, datasets), ("mask_flags", config.mask_flags, flags)):
        unknown = [name for name in names if name not in known]
        if unknown:
            there = ", ".join(known) or "none"
            raise ValueError(f"loader.{setting} names {unknown[0]!r}, which no store has: there are {there}")


def _relabelled(store: EpisodeStore, config: LoaderConfig) -> EpisodeStore:
    return RelabelledStore.of(store).with_statistics() if store.name in config.relabel else store


def _in_common_space(store: EpisodeStore, mixture: MixtureConfig, robots: Sequence[EpisodeStore]) -> EpisodeStore:
    """`store`, one of `robots`, in the common space of the mixture, or as it is where there is none or it is in it
    already."""
    common, maps = mixture.common([robot.contract.action.space() for robot in robots])
    if common is None or store.contract.action.space().identity == common.identity:
        return store
    if store.name not in maps:
        raise ValueError(
            f"{store.name} acts in {store.contract.action.name} and the mixture in {common.name}: declare how the one "
            f"becomes the other under mixture.maps"
        )
    return MappedStore.declared(store, maps[store.name], common)


@overload
def as_trained(store: EpisodeStore, contract: Contract) -> EpisodeStore: ...


@overload
def as_trained(store: Store, contract: Contract) -> Store: ...


def as_trained(store: Store, contract: Contract) -> Store:
    """`store` as a model under `contract` was trained on it: relabelled, and in the common space, where it was so."""
    if not isinstance(store, EpisodeStore):
        return store
    dataset = contract.dataset(store.name)
    seen = RelabelledStore.of(store) if dataset.arm == "reached" else store
    if dataset.own is None:
        return seen
    return MappedStore.of(seen, dataset.own.map, contract.action.space().spec())


def open_reader(
    experiment: Experiment, stores: Sequence[Store], contract: Contract, *, is_training: bool = False
) -> Reader:
    """Reads what `experiment.model` is trained on from `stores`, in model values. Raises ContractMismatch."""
    robots = robot_stores(stores)
    for store in robots:
        require_readable(contract, store)
    seen = [as_trained(store, contract) for store in stores]
    flags = {flag for store in robots for flag in store.manifest.flag_names}  # validation may lack a dataset
    config = replace(
        experiment.loader, mask_flags=tuple(flag for flag in experiment.loader.mask_flags if flag in flags)
    )
    family = family_of(experiment.model)
    return family.open_reader(experiment, seen, contract, config, is_training=is_training)


def build_loader(
    experiment: Experiment,
    reader: Reader,
    context: WorkerContext,
    position: Mapping[str, int] | None,
) -> Loader:
    """This rank's loader; `position` is the `Loader.state()` to continue from, None at the start of a run."""
    loop = experiment.loop
    return Loader(
        reader,
        weights=family_of(experiment.model).sample_shares(experiment, reader.stores),
        seed=loop.seed,
        lanes=loop.lanes,
        segment_windows=loop.segment_windows,
        global_batch=loop.global_batch,
        micro_batch=loop.micro_batch,
        rank=context.rank,
        world_size=context.world_size,
        position=position["sample"] if position else 0,
        pin_memory=context.device.type == "cuda",
    )
