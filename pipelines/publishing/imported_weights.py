"""Weights of a flax or Orbax checkpoint of the JAX RT-1 or RT-1-X as a trained model of ours."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.instructions import Instructions
from pipelines.publishing.model_origin import ModelOrigin
from pipelines.publishing.trained_model import publish_bundle, require_new
from pipelines.publishing.training_stores import StoreReference
from pipelines.training.git_revision import git_revision
from preprocessing.rlds import open_folder
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.file_system import is_local
from rt_models.action_space import ActionSpec
from rt_models.flax_checkpoint import find_flax, read_flax
from rt_models.rt1_weights import from_flax
from rt_models.spec import RT1X, Contract, ContractMismatch, Identity, ImageRecipe, merge_contracts

log = logging.getLogger(__name__)

RELEASED_IMAGE = ImageRecipe(camera="image", height=256, width=320)
"""Frames of RT-1 and RT-1-X (google-research/robotics_transformer 4569641b, `policy_specs.pbtxt`)."""
RT1X_BINS = 512  # of the released models only RT-1-X has so many

ImportedScaling = Literal["released", "identity"]


@dataclass(frozen=True, kw_only=True)
class ImportedWeights:
    """The bundle that was written and what it holds. steps: frames of a window; datasets: those it is bound to."""

    output: str
    checkpoint: str
    parameters: int
    steps: int
    image_tokens: int
    bins: int
    contract: str
    datasets: tuple[str, ...]


def import_weights(
    source: str,
    out: str,
    *,
    data: Sequence[str],
    encoder: str,
    scaling: ImportedScaling = "released",
    world_vector_limit: float | None = None,
) -> ImportedWeights:
    """Read, convert and write. `source` and `out` are absolute paths or URLs.

    Raises FileNotFoundError, FileExistsError or ValueError in one sentence, with nothing written.
    """
    require_new(out)
    stores = [EpisodeStore.open(path, split="train") for path in data]
    with _local(source) as folder:
        flax = find_flax(folder)
        model = from_flax(read_flax(flax), world_vector_limit=world_vector_limit)
        checkpoint = f"{source.rstrip('/')}/{flax.relative_to(folder)}".removesuffix("/.")
    contract = contract_of_weights(model.spec, encoder, stores, scaling)
    trained = TrainedModel(
        model=model,
        contract=contract,
        step=0,
        source=checkpoint,
        origin=ModelOrigin(stores=tuple(StoreReference.of(each, out) for each in stores), git_revision=git_revision()),
        instructions=Instructions.of_stores(contract.encoder, stores),
    )
    publish_bundle(trained, out)
    return ImportedWeights(
        output=out,
        checkpoint=checkpoint,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=model.config.num_steps,
        image_tokens=model.config.num_image_tokens,
        bins=model.config.bins,
        contract=contract.id,
        datasets=tuple(dataset.name for dataset in contract.datasets),
    )


def contract_of_weights(
    action: ActionSpec, encoder: str, stores: Sequence[EpisodeStore], scaling: ImportedScaling = "released"
) -> Contract:
    """The contract of weights that were trained elsewhere. Raises ContractMismatch if the stores do not fit them."""
    if not stores:
        return Contract(action=action, encoder=encoder, image=RELEASED_IMAGE, datasets=())
    merged = merge_contracts([store.contract for store in stores])
    if merged.encoder != encoder:
        raise ContractMismatch(
            f"the weights were trained with instruction vectors of {encoder}, {stores[0].root} has those of "
            f"{merged.encoder}: preprocess it with that encoder, or name the weights' own with --encoder"
        )
    if not action.same_space(merged.action):
        raise ContractMismatch(f"the weights act in {action.name}, {stores[0].root} holds {merged.action.name}")
    as_released = scaling == "released" and action.bins == RT1X_BINS
    bound = []
    for dataset in merged.datasets:
        known = as_released and RT1X.knows(dataset.name)
        if as_released and not known:
            log.warning("there is no scaling of RT-1-X for %s: its physical values are taken as they are", dataset.name)
        one = replace(merged, datasets=(dataset,)).trained_with(action, RT1X() if known else Identity())
        bound += one.datasets
    return replace(merged, action=action, datasets=tuple(bound))


@contextmanager
def _local(source: str) -> Iterator[Path]:
    files, root = open_folder(source)  # the released weights lie in a public bucket
    if is_local(files):
        yield Path(root)
        return
    with tempfile.TemporaryDirectory(prefix="flax-") as scratch:
        if not files.exists(root):
            raise FileNotFoundError(f"{source}: there is no such file or folder")
        files.get(root, f"{scratch}/source", recursive=True)
        yield Path(scratch, "source")
