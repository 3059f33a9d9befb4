"""A trained model as a folder: `model.safetensors`, and `policy.json` with its configuration and contract.

What `rtp import-weights` writes and what a registered model carries. Imports nothing of `cluster`, so that a registered
model is served without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from pipelines.serialization import from_plain, to_plain
from rt_models.rt1 import RT1, RT1Config
from rt_models.spec import Contract

WEIGHTS, DESCRIPTION = "model.safetensors", "policy.json"


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model in evaluation mode with the contract it was trained under and where it came from.

    `metadata` holds stores and git revision, and of a training its experiment and MLflow run too.
    """

    model: RT1
    contract: Contract
    step: int
    source: str
    metadata: Mapping[str, Any]


def read_bundle(folder: Path) -> TrainedModel:
    """The model that `write_bundle` left in `folder`."""
    described = json.loads((folder / DESCRIPTION).read_text())
    model = from_plain(RT1Config, described["model"]).build().eval()
    model.load_state_dict(load_file(folder / WEIGHTS))
    return TrainedModel(
        model=model,
        contract=Contract.from_json(described["contract"]),
        step=described["step"],
        source=described["source"],
        metadata=described["metadata"],
    )


def write_bundle(trained: TrainedModel, folder: Path) -> None:
    """Write into the existing `folder`."""
    weights = {key: value.contiguous() for key, value in trained.model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    described = {
        "model": to_plain(trained.model.config),
        "contract": trained.contract.to_json(),
        "step": trained.step,
        "source": trained.source,
        "metadata": trained.metadata,
    }
    (folder / DESCRIPTION).write_text(json.dumps(described))
