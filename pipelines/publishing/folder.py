"""A trained model as a folder: `model.safetensors`, `policy.json` with its configuration and contract, and
`instructions.npz`, the instruction table of its training stores.

What `rtp export` and `rtp import-weights` write and what a registered model carries. Imports nothing of `cluster`, so
that a registered model is served without it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pipelines.config.serialization import to_plain
from pipelines.families.models import Model, family_of, model_config
from pipelines.publishing.instructions import Instructions
from pipelines.publishing.model_origin import ModelOrigin
from pipelines.publishing.weights import each_tensor, fill, without_weights
from rt_models.spec import Contract

WEIGHTS, DESCRIPTION = "model.safetensors", "policy.json"


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model in evaluation mode with the contract it was trained under and where it came from."""

    model: Model
    contract: Contract
    step: int
    source: str
    origin: ModelOrigin
    instructions: Instructions
    """Texts that it was trained on and their vectors; none where only a checkpoint or an older bundle was read."""


def read_bundle(folder: str | Path, device: torch.device | None = None) -> TrainedModel:
    """The model that `write_bundle` left in `folder`, on `device`, by default the CPU.

    Raises ValueError if the files do not hold one.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    try:
        described = json.loads(path.read_text())
        config, contract = model_config(described["model"]), Contract.from_json(described["contract"])
        step, source, origin = described["step"], described["source"], ModelOrigin.from_json(described["metadata"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not describe a model ({error!r}): export it again") from error
    model = without_weights(family_of(config).carried(config, folder), device)
    _load(model, folder, device)
    instructions = Instructions.read(folder, contract.encoder)
    return TrainedModel(
        model=model, contract=contract, step=step, source=source, origin=origin, instructions=instructions
    )


def write_portable(trained: TrainedModel, folder: Path, *, source: str) -> None:
    """Write into the existing `folder` what another machine can load: with what the model reads beside its weights,
    and without paths of this one. `source` stands where the checkpoint's path would."""
    stores = tuple(replace(each, path=each.name, dataset=each.name, relative="") for each in trained.origin.stores)
    # The fingerprint of RT-2's plans, by which it is known that the model says plans.
    document = {key: trained.origin.document[key] for key in ("plans",) if key in trained.origin.document}
    origin = ModelOrigin(stores=stores, git_revision=trained.origin.git_revision, document=document)
    write_bundle(replace(trained, source=source, origin=origin), folder)
    description = folder / DESCRIPTION
    described = json.loads(description.read_text())
    described["model"] = to_plain(family_of(trained.model).carry(trained.model.config, folder))
    description.write_text(json.dumps(described))


def _load(model: Model, folder: Path, device: torch.device | None) -> None:
    path = folder / WEIGHTS
    try:
        fill(model, each_tensor(path, device))
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): export it again") from error
    except KeyError as error:
        raise ValueError(f"{path} holds the weights of another model than {DESCRIPTION} describes ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_bundle(trained: TrainedModel, folder: Path) -> None:
    """Write into the existing `folder`."""
    weights: dict[str, Tensor] = {}
    owners: set[int] = set()
    for key, value in trained.model.state_dict().items():
        tied = value.untyped_storage().data_ptr() in owners  # safetensors refuses two names for one memory
        weights[key] = value.clone() if tied else value.contiguous()
        owners.add(value.untyped_storage().data_ptr())
    save_file(weights, folder / WEIGHTS)  # as a file of the owner alone
    (folder / WEIGHTS).chmod(folder.stat().st_mode & 0o666)
    described = {
        "model": to_plain(trained.model.config),
        "contract": trained.contract.to_json(),
        "step": trained.step,
        "source": trained.source,
        "metadata": trained.origin.to_json(),
    }
    if trained.instructions.vectors:
        trained.instructions.write(folder)
    (folder / DESCRIPTION).write_text(json.dumps(described))
