"""A trained model from what `rtp train` wrote (checkpoints) or `rtp import-weights` did (a bundle).

Needs neither Ray nor DeepSpeed.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import fsspec

from cluster.shards import read_weights
from cluster.storage import Checkpoint, CheckpointFolder
from pipelines.bundle import DESCRIPTION, WEIGHTS, TrainedModel, read_bundle
from pipelines.serialization import from_plain
from preprocessing.episode_store import is_local
from rt_models.rt1 import RT1Config
from rt_models.spec import Contract


def load_trained(path: str) -> TrainedModel:
    """Load the newest checkpoint under `path` (a run's output folder, its checkpoints, one of them), or its bundle.

    Raises FileNotFoundError where there is none and ValueError where it does not hold what its manifest says.
    """
    try:
        folder, checkpoint = find_checkpoint(path)
    except FileNotFoundError:
        bundle = _load_bundle(path)
        if bundle is None:
            raise
        return bundle
    contract = Contract.from_json(checkpoint.metadata["contract"])
    model = from_plain(RT1Config, checkpoint.metadata["experiment"]["model"]).build()
    with tempfile.TemporaryDirectory(prefix="model-") as scratch:
        model.load_state_dict(read_weights(folder.fetch(checkpoint, Path(scratch)) / "engine"))
    return TrainedModel(
        model=model.eval(),
        contract=contract,
        step=checkpoint.step,
        source=checkpoint.path,
        metadata=checkpoint.metadata,
    )


def _load_bundle(path: str) -> TrainedModel | None:
    files, root = fsspec.core.url_to_fs(path)
    if not files.exists(f"{root}/{DESCRIPTION}"):
        return None
    if is_local(files):
        return read_bundle(Path(root))
    with tempfile.TemporaryDirectory(prefix="model-") as scratch:
        for name in (WEIGHTS, DESCRIPTION):
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
