"""A trained model from what `rtp train` wrote (checkpoints) or `rtp import-weights` and `rtp export` did (a bundle).

Needs neither Ray nor DeepSpeed.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import fsspec

from cluster.shards import read_weights
from cluster.storage import Checkpoint, CheckpointFolder
from pipelines.families.models import ModelConfig, model_config
from pipelines.publishing.folder import DESCRIPTION, WEIGHTS, TrainedModel, read_bundle
from pipelines.publishing.instructions import INSTRUCTIONS, Instructions
from pipelines.publishing.training_stores import found_again, open_training_store, references_of
from preprocessing.store.shard_files import is_local
from preprocessing.store.web_store import robot_stores
from rt_models.spec import Contract

Which = Literal["averaged", "last"]
"""The running average of the weights (EMA), or the weights as the last step left them."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of a trained model before its weights are read."""

    model: ModelConfig
    contract: Contract


def load_trained(path: str, weights: Which | None = None) -> TrainedModel:
    """Load the newest checkpoint under `path` (a run's output folder, its checkpoints, one of them), or its bundle.

    `weights` are by default the averaged ones where the training kept them (engine.ema_decay). Raises FileNotFoundError
    where there is none and ValueError where it does not hold what its manifest says.
    """
    try:
        folder, checkpoint = find_checkpoint(path)
    except FileNotFoundError:
        bundle = _load_bundle(path)
        if bundle is None:
            raise
        return bundle
    averaged = _keeps_average(checkpoint) if weights is None else weights == "averaged"
    run = folder.root.removesuffix("/checkpoints")
    model = model_config(checkpoint.metadata["experiment"]["model"]).build()
    with tempfile.TemporaryDirectory(prefix="model-") as scratch:
        engine = folder.fetch(checkpoint, Path(scratch)) / "engine"
        model.load_state_dict(read_weights(engine, averaged=averaged))
    contract = Contract.from_json(checkpoint.metadata["contract"])
    return TrainedModel(
        model=model.eval(),
        contract=contract,
        instructions=Instructions(contract.encoder, {}),
        step=checkpoint.step,
        source=checkpoint.path,
        metadata={**found_again(checkpoint.metadata, run), "weights": "averaged" if averaged else "last"},
    )


def with_instructions(trained: TrainedModel) -> TrainedModel:
    """The model with the instruction table of its training stores, where it carries none of its own.

    A store that is no longer there is warned of, and its instructions are left to the encoder.
    """
    if trained.instructions.vectors:
        return trained
    opened = [open_training_store(reference) for reference in references_of(trained.metadata)]
    stores = robot_stores(store for store in opened if store is not None)
    return replace(trained, instructions=Instructions.of_stores(trained.contract.encoder, stores))


def describe_trained(path: str) -> Description:
    """What `load_trained` would load. Raises FileNotFoundError where there is nothing."""
    try:
        metadata = find_checkpoint(path)[1].metadata
        model = metadata["experiment"]["model"]
    except FileNotFoundError:
        files, root = fsspec.core.url_to_fs(path)
        if not files.exists(f"{root}/{DESCRIPTION}"):
            raise
        metadata = json.loads(files.cat_file(f"{root}/{DESCRIPTION}"))
        model = metadata["model"]
    return Description(model=model_config(model), contract=Contract.from_json(metadata["contract"]))


def _keeps_average(checkpoint: Checkpoint) -> bool:
    engine: dict[str, Any] = checkpoint.metadata["experiment"]["engine"]
    return engine["ema_decay"] > 0


def _load_bundle(path: str) -> TrainedModel | None:
    files, root = fsspec.core.url_to_fs(path)
    if not files.exists(f"{root}/{DESCRIPTION}"):
        return None
    if is_local(files):
        bundle = read_bundle(Path(root))
        return replace(bundle, metadata=found_again(bundle.metadata, root))
    with tempfile.TemporaryDirectory(prefix="model-") as scratch:
        for name in (WEIGHTS, DESCRIPTION, INSTRUCTIONS):
            if name != INSTRUCTIONS or files.exists(f"{root}/{name}"):  # older bundles have none
                files.get_file(f"{root}/{name}", f"{scratch}/{name}")
        return read_bundle(Path(scratch))


def find_checkpoint(path: str) -> tuple[CheckpointFolder, Checkpoint]:
    """The newest complete checkpoint at or under `path`, and the folder it stands in."""
    for root in (f"{path}/checkpoints", path):
        folder = CheckpointFolder(root)
        found = folder.latest()
        if found is not None:
            return folder, found
    parent, _, name = path.rstrip("/").rpartition("/")
    step = re.fullmatch(r"step-(\d+)", name)
    folder = CheckpointFolder(parent or ".")
    found = folder.at(int(step[1])) if step else None
    if found is None:
        raise FileNotFoundError(f"no complete checkpoint in {path}: give the --output folder of rtp train")
    return folder, found
