"""From an experiment and its stores to batches: the contract of the run, its reader and its loader."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.context import WorkerContext
from pipelines.experiment import Experiment
from preprocessing.episode_store import EpisodeStore
from preprocessing.loading.loader import Loader, WindowReader
from rt_models.spec import Contract, merge_contracts


def training_contract(experiment: Experiment, stores: list[EpisodeStore]) -> Contract:
    """The contract a model trained on `stores` has. Raises ContractMismatch where they cannot be mixed."""
    merged = merge_contracts([store.contract for store in stores])
    action = experiment.model.action_spec()
    if not action.same_space(merged.action):
        raise ValueError(f"the model acts in {action.name}, the stores hold {merged.action.name}")
    return merged.trained_with(action, experiment.scaling)


def open_reader(experiment: Experiment, stores: list[EpisodeStore], contract: Contract) -> WindowReader:
    """Reads what `experiment.model` is trained on from `stores`, in model values. Raises ContractMismatch."""
    for store in stores:
        contract.require_readable(store.contract, where=store.root)
    transforms = [contract.dataset(store.contract.datasets[0].name).transform for store in stores]
    return WindowReader(stores, transforms, num_steps=experiment.model.num_steps, config=experiment.loader)


def build_loader(
    experiment: Experiment, reader: WindowReader, context: WorkerContext, position: Mapping[str, int] | None
) -> Loader:
    """This rank's loader; `position` is the `Loader.state()` to continue from, None at the start of a run."""
    loop = experiment.loop
    return Loader(
        reader,
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
