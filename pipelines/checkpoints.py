"""A trained model from what `rtp train` wrote (or `rtp import-weights`): weights, configuration and contract.

Needs neither Ray nor DeepSpeed.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.shards import read_weights
from cluster.storage import Checkpoint, CheckpointFolder
from pipelines.serialization import from_plain
from rt_models.rt1 import RT1, RT1Config
from rt_models.spec import Contract


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model in evaluation mode with the contract it was trained under and where it came from.

    `metadata` holds experiment, stores, git revision and MLflow run of the training.
    """

    model: RT1
    contract: Contract
    step: int
    source: str
    metadata: Mapping[str, Any]


def load_trained(path: str) -> TrainedModel:
    """Load the newest checkpoint under `path`: a run's output folder, its checkpoints folder, or one checkpoint.

    Raises FileNotFoundError where there is none and ValueError where it does not hold what its manifest says.
    """
    folder, checkpoint = find_checkpoint(path)
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
