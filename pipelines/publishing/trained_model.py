"""A trained model by name, for every command that takes one: a run, a checkpoint, an exported folder (a bundle), or a
registered model; and the bundle that `rtp export` and `rtp import-weights` write.

Needs neither Ray nor DeepSpeed.
"""

from __future__ import annotations

import atexit
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cluster.object_store import open_files
from cluster.shards import each_weight
from cluster.storage import Checkpoint, CheckpointFolder
from pipelines.families.models import ModelConfig, family_of, model_config
from pipelines.publishing.folder import DESCRIPTION, WEIGHTS, TrainedModel, read_bundle, write_bundle
from pipelines.publishing.instructions import INSTRUCTIONS, Instructions
from pipelines.publishing.model_card import CARD
from pipelines.publishing.model_origin import ModelOrigin, Which
from pipelines.publishing.registered import describe_registered, fetch_registered, is_registered
from pipelines.publishing.training_stores import open_training_store
from pipelines.publishing.weights import fill, without_weights
from pipelines.training.checkpoint_metadata import CheckpointMetadata
from pipelines.training.run_files import METRICS
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.file_system import is_local
from preprocessing.store.manifest_file import MANIFEST as STORE_MANIFEST
from preprocessing.store.new_folders import made_for
from preprocessing.store.shard_files import reaching
from preprocessing.store.web_store import robot_stores
from rt_models.spec import Contract

log = logging.getLogger(__name__)

ACCEPTED = (
    "a run's output folder, one of its checkpoints, a folder that rtp export or rtp import-weights wrote, or "
    "models:/NAME@ALIAS"
)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of a trained model before its weights are read."""

    model: ModelConfig
    contract: Contract


def load_trained(
    source: str,
    weights: Which | None = None,
    *,
    tracking: str | None = None,
    device: torch.device | None = None,
) -> TrainedModel:
    """Load the newest checkpoint under `source` (a run's output folder, its checkpoints, one of them), the bundle in it
    or the registered model of that name: models:/NAME@ALIAS or models:/NAME/VERSION, on the server `tracking`.

    The model lies on `device`, by default the CPU. `weights` are by default the averaged ones where the training kept
    them (engine.ema_decay). Raises FileNotFoundError or ConnectionError if there is no model and ValueError if it does
    not hold what its manifest says.
    """
    if is_registered(source):
        return fetch_registered(source, tracking, device)
    if _is_bundle(source):
        return _load_bundle(source, device)
    folder, checkpoint = find_checkpoint(source)
    metadata = CheckpointMetadata.of(checkpoint)
    keeps_average = metadata.experiment["engine"]["ema_decay"] > 0
    averaged = keeps_average if weights is None else weights == "averaged"
    run, origin = folder.root.removesuffix("/checkpoints"), ModelOrigin.from_json(checkpoint.metadata)
    model = without_weights(model_config(metadata.experiment["model"]), device)
    with tempfile.TemporaryDirectory(prefix="model-") as scratch:
        engine = folder.fetch(checkpoint, Path(scratch)) / "engine"
        try:
            fill(model, each_weight(engine, averaged=averaged))
        except KeyError as error:
            raise ValueError(f"{checkpoint.path} holds the weights of another model than its own ({error})") from error
        except ValueError as error:
            raise ValueError(f"{checkpoint.path}: {error}") from error
    return TrainedModel(
        model=model,
        contract=metadata.contract,
        instructions=Instructions(metadata.contract.encoder, {}),
        step=checkpoint.step,
        source=checkpoint.path,
        origin=replace(origin.found_from(run), weights="averaged" if averaged else "last"),
    )


def with_instructions(trained: TrainedModel) -> TrainedModel:
    """The model with the instruction table of its training stores, where it carries none of its own.

    A missing store gives a warning; the encoder then computes its instructions.
    """
    if trained.instructions.vectors:
        return trained
    opened = [open_training_store(reference) for reference in trained.origin.stores]
    stores = robot_stores(store for store in opened if store is not None)
    return replace(trained, instructions=instructions_of(trained, stores))


def instructions_of(trained: TrainedModel, stores: Sequence[EpisodeStore]) -> Instructions:
    """The instruction table of a model's training stores, as the model is told it. A store that no longer says it gives
    a warning."""
    family, vectors = family_of(trained.model), {}
    for store in stores:
        try:
            vectors |= family.instructions(trained.model.config, store)
        except (ValueError, OSError) as error:
            log.warning("the instructions that the model was trained on are not all known: %s", error)
    return Instructions(trained.contract.encoder, vectors)


def describe_trained(source: str, *, tracking: str | None = None) -> Description:
    """What `load_trained` would load, without its weights. Raises as that does."""
    if not is_registered(source) and not _is_bundle(source):
        metadata = CheckpointMetadata.of(find_checkpoint(source)[1])
        return Description(model=model_config(metadata.experiment["model"]), contract=metadata.contract)
    if is_registered(source):
        described = describe_registered(source, tracking)
    else:
        files, root = open_files(source)
        described = json.loads(files.cat_file(f"{root}/{DESCRIPTION}"))
    return Description(model=model_config(described["model"]), contract=Contract.from_json(described["contract"]))


def _is_bundle(path: str) -> bool:
    if path.startswith("hf://datasets/"):
        raise ValueError(f"{path} is a dataset of the Hugging Face hub, and a model is needed: give hf://OWNER/MODEL")
    with reaching(path):
        files, root = open_files(path)
        return files.exists(f"{root.rstrip('/')}/{DESCRIPTION}")


def _load_bundle(path: str, device: torch.device | None) -> TrainedModel:
    files, root = open_files(path)
    if is_local(files):
        bundle = read_bundle(Path(root), device)
        return replace(bundle, origin=bundle.origin.found_from(root))
    scratch = Path(tempfile.mkdtemp(prefix="model-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)  # a pretrained model's tokenizer is read from it later
    names = (str(name).removeprefix(f"{root.rstrip('/')}/") for name in files.find(root))
    for name in names:
        if name in (WEIGHTS, DESCRIPTION, INSTRUCTIONS) or ("/" in name and not name.startswith("evaluations/")):
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{root.rstrip('/')}/{name}", str(scratch / name))
    bundle = read_bundle(scratch, device)
    (scratch / WEIGHTS).unlink()
    return bundle


def find_checkpoint(path: str) -> tuple[CheckpointFolder, Checkpoint]:
    """The newest complete checkpoint at or under `path`, and the folder it stands in. Raises FileNotFoundError."""
    with reaching(path):
        files, place = open_files(path)
        if files.isfile(place):
            raise FileNotFoundError(f"{path} is a file, not the folder of a model: give {ACCEPTED}")
    for root in (f"{path}/checkpoints", path):
        folder = CheckpointFolder(root)
        checkpoint = folder.latest()
        if checkpoint is not None:
            return folder, checkpoint
    parent, _, name = path.rstrip("/").rpartition("/")
    step = re.fullmatch(r"step-(\d+)", name)
    folder = CheckpointFolder(parent or ".")
    checkpoint = folder.at(int(step[1])) if step else None
    if checkpoint is None:
        raise FileNotFoundError(f"{path} {_nature(path)}: give {ACCEPTED}")
    return folder, checkpoint


def _nature(path: str) -> str:
    """What is at `path` instead of a model, as the predicate of a sentence."""
    files, root = open_files(path)
    if not files.exists(root):
        return "is not there"
    marks = {
        STORE_MANIFEST: "is an episode store, not a model",
        "MLmodel": "is an MLflow model folder, whose policy lies in artifacts/policy",
        "checkpoints": "is a run without a complete checkpoint",
        METRICS: "is a run without a complete checkpoint",
    }
    return next((text for mark, text in marks.items() if files.exists(f"{root}/{mark}")), "holds no model")


# --- writing ---


def require_new(out: str) -> None:
    """Raise FileExistsError if something exists at `out`, a path or URL."""
    files, root = open_files(out)
    if files.exists(root):
        raise FileExistsError(f"{out} exists: give a new folder")


def publish_bundle(trained: TrainedModel, out: str, card: str = "") -> None:
    """Write a new folder, local or remote, with its card. It appears whole; in an object store its description comes
    last."""
    files, root = open_files(out)
    trained = replace(trained, origin=trained.origin.seen_from(root if is_local(files) else out))
    parent = Path(root).parent if is_local(files) else None
    with (
        made_for(parent) if parent is not None else nullcontext(),
        tempfile.TemporaryDirectory(prefix=".bundle-", dir=parent) as scratch,
    ):
        folder = Path(scratch, "bundle")
        folder.mkdir()
        write_bundle(trained, folder)
        if card:
            (folder / CARD).write_text(card)
        if parent is not None:
            folder.rename(root)
            return
        for file in sorted(folder.iterdir(), key=lambda file: file.name == DESCRIPTION):
            files.put_file(str(file), f"{root}/{file.name}")
