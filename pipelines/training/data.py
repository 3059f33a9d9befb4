"""From an experiment and its stores to batches: the contract of the run, its reader and its loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.context import WorkerContext
from pipelines.config.experiment import Experiment
from pipelines.training.co_fine_tuning import (
    CoFineTuningConfig,
    CoFineTuningReader,
    Store,
    require_room,
    sample_shares,
    with_tokenizer,
    with_vocabulary,
)
from preprocessing.loading.loader import Loader, LoaderConfig, WindowReader
from preprocessing.loading.relabelling import RelabelledStore
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import robot_stores
from rt_models.rt1 import RT1Config
from rt_models.rt2 import RT2Config
from rt_models.rt2_vlm import RT2VLMConfig
from rt_models.spec import Contract, merge_contracts


def resolved(experiment: Experiment, stores: Sequence[Store]) -> Experiment:
    """The experiment with what only the data can say of an RT-2: a tokenizer from scratch, the rarest tokens.

    Raises ValueError where an instruction or a web example does not fit into the model's context, or where the model
    needs what no store holds.
    """
    model = experiment.model
    if isinstance(model, RT1Config):
        if model.image_channels == "rgb+mask":
            raise ValueError(
                "model.image_channels rgb+mask needs object masks, which episode stores do not hold: train in Python "
                'with a reader that adds "object_mask" to each batch (rt_models.spec.BATCH), or leave it at rgb'
            )
        return experiment
    if isinstance(model, RT2Config):
        model = with_tokenizer(model, stores)
    model = with_vocabulary(model, stores)
    if isinstance(model, RT2VLMConfig):
        model = model.resolved()
        model.require_loadable()
    mix = experiment.co_fine_tuning
    if mix is None:
        raise ValueError(f"{experiment.name}: an RT-2 needs co_fine_tuning, and its recipe sets none")
    if experiment.loop.segment_windows > 1:
        raise ValueError("RT-2 trains on single samples: set loop.segment_windows 1")
    if mix.plans:
        mix = replace(mix, plans=str(Path(mix.plans).absolute()))  # workers run in other folders
    require_room(stores, model.build_text(), mix.read_plans())
    return replace(experiment, model=model, co_fine_tuning=mix)


def training_contract(experiment: Experiment, stores: Sequence[Store]) -> Contract:
    """The contract a model trained on `stores` has. Raises ContractMismatch where they cannot be mixed."""
    robots = robot_stores(stores)
    if not robots:
        raise ValueError("no store of robot episodes is given: what actions mean comes from them")
    _require_known(experiment.loader, robots)
    if experiment.co_fine_tuning is not None:
        sample_shares(experiment.co_fine_tuning, experiment.mixture, stores)
    elif len(robots) < len(stores):
        raise ValueError(f"{experiment.name} trains on robot episodes alone: leave stores of web data out of --data")
    else:
        experiment.mixture.shares(_steps(robots))
    merge_contracts([store.contract for store in robots])  # before states are read
    merged = merge_contracts([_relabelled(store, experiment.loader).contract for store in robots])
    empty = [dataset.name for dataset in merged.datasets if not dataset.statistics.count]
    if empty:
        raise ValueError(f"the store of {empty[0]} has no step to train on, all are terminal: leave it out of --data")
    action = experiment.model.action_spec()
    if not action.same_space(merged.action):
        raise ValueError(f"the model acts in {action.name}, the stores hold {merged.action.name}")
    return merged.trained_with(action, experiment.scaling)


def _require_known(config: LoaderConfig, robots: Sequence[EpisodeStore]) -> None:
    """Raise ValueError for a dataset or step flag of the loader's settings that no store has."""
    datasets = dict.fromkeys(store.name for store in robots)
    flags = dict.fromkeys(flag for store in robots for flag in store.manifest.flag_names)
    for setting, asked, known in (("relabel", config.relabel, datasets), ("mask_flags", config.mask_flags, flags)):
        unknown = [name for name in asked if name not in known]
        if unknown:
            there = ", ".join(known) or "none"
            raise ValueError(f"loader.{setting} names {unknown[0]!r}, which no store has: there are {there}")


def _relabelled(store: EpisodeStore, config: LoaderConfig) -> EpisodeStore:
    return RelabelledStore.of(store).with_statistics() if store.name in config.relabel else store


def as_trained(store: Store, contract: Contract) -> Store:
    """`store` as a model under `contract` was trained on it: with the source's commands, or relabelled."""
    if not isinstance(store, EpisodeStore) or contract.dataset(store.name).arm == "commanded":
        return store
    return RelabelledStore.of(store)


def open_reader(
    experiment: Experiment, stores: Sequence[Store], contract: Contract
) -> WindowReader | CoFineTuningReader:
    """Reads what `experiment.model` is trained on from `stores`, in model values. Raises ContractMismatch."""
    robots = robot_stores(stores)
    for store in robots:
        contract.require_readable(store.contract, where=store.root)
    seen = [as_trained(store, contract) for store in stores]
    flags = {flag for store in robots for flag in store.manifest.flag_names}  # validation may lack a dataset
    config = replace(
        experiment.loader, mask_flags=tuple(flag for flag in experiment.loader.mask_flags if flag in flags)
    )
    if not isinstance(experiment.model, RT1Config):
        mix = experiment.co_fine_tuning or CoFineTuningConfig()
        text = experiment.model.build_text()
        return CoFineTuningReader(seen, contract, text, mix=mix, config=config)
    transforms = [contract.dataset(store.name).transform for store in robots]
    return WindowReader(robot_stores(seen), transforms, num_steps=experiment.model.num_steps, config=config)


def build_loader(
    experiment: Experiment,
    reader: WindowReader | CoFineTuningReader,
    context: WorkerContext,
    position: Mapping[str, int] | None,
) -> Loader:
    """This rank's loader; `position` is the `Loader.state()` to continue from, None at the start of a run."""
    loop = experiment.loop
    return Loader(
        reader,
        weights=_shares(experiment, reader),
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


def _shares(experiment: Experiment, reader: WindowReader | CoFineTuningReader) -> Sequence[float] | None:
    """The share of samples of each of the reader's stores; None where all their rows are one epoch."""
    if isinstance(reader, CoFineTuningReader):
        return sample_shares(reader.mix, experiment.mixture, reader.stores)
    shares = experiment.mixture.shares(dict(zip(reader.datasets, reader.store_rows, strict=True)))
    return None if shares is None else list(shares.values())


def _steps(robots: Sequence[EpisodeStore]) -> dict[str, int]:
    return {store.name: store.num_steps for store in robots}
