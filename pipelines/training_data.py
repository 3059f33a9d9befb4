"""From an experiment and its stores to batches: the contract of the run, its reader and its loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.context import WorkerContext
from pipelines.co_fine_tuning import (
    CoFineTuningConfig,
    CoFineTuningReader,
    Store,
    require_room,
    sample_shares,
    with_tokenizer,
)
from pipelines.experiment import Experiment
from preprocessing.episode_store import EpisodeStore
from preprocessing.loading.loader import Loader, WindowReader
from preprocessing.web_store import robot_stores
from rt_models.rt1 import RT1Config
from rt_models.rt2 import RT2Config
from rt_models.spec import Contract, merge_contracts


def resolved(experiment: Experiment, stores: Sequence[Store]) -> Experiment:
    """The experiment with what only the data can say: the tokenizer of an RT-2 that starts without one.

    Raises ValueError where an instruction or a web example does not fit into the model's context.
    """
    model = experiment.model
    if isinstance(model, RT1Config):
        return experiment
    if isinstance(model, RT2Config):
        model = with_tokenizer(model, stores)
    mix = experiment.co_fine_tuning
    if mix is None:
        raise ValueError(f"{experiment.name}: an RT-2 needs co_fine_tuning, and its recipe sets none")
    if mix.plans:
        mix = replace(mix, plans=str(Path(mix.plans).absolute()))  # workers run in other folders
    require_room(stores, model.build_text(), mix.read_plans())
    return replace(experiment, model=model, co_fine_tuning=mix)


def training_contract(experiment: Experiment, stores: Sequence[Store]) -> Contract:
    """The contract a model trained on `stores` has. Raises ContractMismatch where they cannot be mixed."""
    robots = robot_stores(stores)
    if not robots:
        raise ValueError("no store of robot episodes is given: what actions mean comes from them")
    if experiment.co_fine_tuning is not None:
        sample_shares(experiment.co_fine_tuning, experiment.mixture, stores)
    elif len(robots) < len(stores):
        raise ValueError(f"{experiment.name} trains on robot episodes alone: leave stores of web data out of --data")
    else:
        experiment.mixture.shares(_steps(robots))
    merged = merge_contracts([store.contract for store in robots])
    action = experiment.model.action_spec()
    if not action.same_space(merged.action):
        raise ValueError(f"the model acts in {action.name}, the stores hold {merged.action.name}")
    return merged.trained_with(action, experiment.scaling)


def open_reader(
    experiment: Experiment, stores: Sequence[Store], contract: Contract
) -> WindowReader | CoFineTuningReader:
    """Reads what `experiment.model` is trained on from `stores`, in model values. Raises ContractMismatch."""
    robots = robot_stores(stores)
    for store in robots:
        contract.require_readable(store.contract, where=store.root)
    if not isinstance(experiment.model, RT1Config):
        mix = experiment.co_fine_tuning or CoFineTuningConfig()
        text = experiment.model.build_text()
        return CoFineTuningReader(stores, contract, text, mix=mix, config=experiment.loader)
    transforms = [contract.dataset(store.contract.datasets[0].name).transform for store in robots]
    return WindowReader(robots, transforms, num_steps=experiment.model.num_steps, config=experiment.loader)


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
    return {store.contract.datasets[0].name: sum(shard.rows for shard in store.shards) for store in robots}
