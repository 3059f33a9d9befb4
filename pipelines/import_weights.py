"""`rtp import-weights`: a flax or Orbax checkpoint of the JAX RT-1 or RT-1-X becomes a model that can be evaluated,
registered and served.

The weights say nothing about data, so the contract takes a store's: its dimensions, units and statistics. Model values
are what RT-1-X was given of each dataset it was trained on, and elsewhere the physical ones. Without --data the model
has weights, action space, encoder and image recipe, and is bound to no dataset.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import fsspec
import tyro

from pipelines.config.arguments import parse
from pipelines.export import publish_bundle, require_new
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.instructions import Instructions
from pipelines.publishing.training_stores import StoreReference, with_references
from pipelines.terminal.next_step import print_next
from pipelines.train import absolute
from pipelines.training.git_revision import git_revision
from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.shard_files import is_local
from rt_models.action_space import ActionSpec
from rt_models.flax_checkpoint import find_flax, read_flax
from rt_models.rt1_weights import from_flax
from rt_models.spec import RT1X, Contract, ContractMismatch, Identity, ImageRecipe, merge_contracts

log = logging.getLogger(__name__)

RELEASED_IMAGE = ImageRecipe(camera="image", height=256, width=320)  # frames of RT-1 and RT-1-X (facts: c4)
RT1X_BINS = 512  # of the released models only RT-1-X has so many

ImportedScaling = Literal["released", "identity"]


@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """Flags of `rtp import-weights`."""

    source: tyro.conf.Positional[str]
    """Folder of a flax or Orbax checkpoint, such as rt_1_x_jax, or flax's msgpack file; local or s3://, gs://."""
    out: tyro.conf.Positional[str]
    """Folder to write, local or s3://, gs://; it must not exist."""
    data: tuple[str, ...] = ()
    """Episode stores that the model is to act on: their dimensions, units and statistics enter the contract."""
    encoder: str = USE_ENCODER
    """Id of the instruction encoder that the weights were trained with."""
    world_vector_limit: float | None = None
    """Largest arm displacement per axis and step in model values; by default 2 for 512 bins (RT-1-X), else 1."""
    scaling: ImportedScaling = "released"
    """Model values: "released", for weights of 512 bins RT-1-X's own constants of each dataset it knows, and physical
    values (metres, radians) otherwise; "identity", physical values always."""


def main(arguments: list[str]) -> dict[str, Any]:
    """Run the command line and say what was written."""
    given = parse(ImportArguments, arguments, prog="rtp import-weights", description=__doc__ or "")
    written = import_weights(given)
    bound = ", ".join(written["datasets"]) or "no dataset (give --data to evaluate or register)"
    print(
        f"{written['output']}: {written['parameters']:,} parameters, {written['steps']} frames of "
        f"{written['image_tokens']} tokens, {written['bins']} bins; bound to {bound}"
    )
    if given.data:
        print_next("evaluate", given.out, "--data", *given.data)
    return written


def import_weights(given: ImportArguments) -> dict[str, Any]:
    """Read, convert and write; what was found.

    Raises FileNotFoundError, FileExistsError or ValueError in one sentence, with nothing written.
    """
    source_url, out = absolute(given.source), absolute(given.out)
    require_new(out)
    stores = [EpisodeStore.open(path, split="train") for path in given.data]
    with _local(source_url) as source:
        found = find_flax(source)
        model = from_flax(read_flax(found), world_vector_limit=given.world_vector_limit)
        checkpoint = f"{source_url.rstrip('/')}/{found.relative_to(source)}".removesuffix("/.")
    contract = contract_of_weights(model.spec, given.encoder, stores, given.scaling)
    trained = TrainedModel(
        model=model,
        contract=contract,
        step=0,
        source=checkpoint,
        metadata=with_references({"git_revision": git_revision()}, [StoreReference.of(each, out) for each in stores]),
        instructions=Instructions.of_stores(contract.encoder, stores),
    )
    publish_bundle(trained, out)
    return {
        "output": given.out,
        "checkpoint": checkpoint,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": model.config.num_steps,
        "image_tokens": model.config.num_image_tokens,
        "bins": model.config.bins,
        "contract": contract.id,
        "datasets": [dataset.name for dataset in contract.datasets],
    }


def contract_of_weights(
    action: ActionSpec, encoder: str, stores: Sequence[EpisodeStore], scaling: ImportedScaling = "released"
) -> Contract:
    """The contract of weights that were trained elsewhere. Raises ContractMismatch where the stores do not fit them."""
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
    files, root = fsspec.core.url_to_fs(source)
    if is_local(files):
        yield Path(root)
        return
    with tempfile.TemporaryDirectory(prefix="flax-") as scratch:
        if not files.exists(root):
            raise FileNotFoundError(f"{source}: there is no such file or folder")
        files.get(root, f"{scratch}/source", recursive=True)
        yield Path(scratch, "source")
