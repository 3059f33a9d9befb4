"""What a trained model's folder is, without reading its weights: a run, one of its checkpoints, or a bundle."""

from __future__ import annotations

import json
from typing import NotRequired, TypedDict

from cluster.object_store import open_files
from preprocessing.store.shard_files import reaching
from rt_models.spec import Contract

_DESCRIPTION, _WEIGHTS = "policy.json", "model.safetensors"  # pipelines/publishing/folder.py, which imports torch
_MARKS = {_DESCRIPTION: "bundle", "checkpoints": "run", "engine": "checkpoint"}
MODELS = tuple(_MARKS.values())


def kind_of_model(path: str) -> str | None:
    """run, checkpoint or bundle; None if `path` holds no model."""
    with reaching(path):
        files, root = open_files(path)
        return next((kind for name, kind in _MARKS.items() if files.exists(f"{root.rstrip('/')}/{name}")), None)


class ModelSummary(TypedDict):
    """What `rtp inspect` says of a model. `stores`: paths, or of older bundles names, of those that it was trained on.

    Only of a bundle: source. Only of a run or checkpoint: steps, recipe, mlflow_run_id; only of a run: checkpoints,
    metrics.
    """

    kind: str
    path: str
    step: int
    steps: NotRequired[int]
    source: NotRequired[str]
    model: str
    contract: str
    action: str
    encoder: str
    image: str
    datasets: list[str]
    stores: list[str]
    git_revision: str | None
    recipe: NotRequired[str]
    mlflow_run_id: NotRequired[str | None]
    bytes: int
    checkpoints: NotRequired[list[int]]
    metrics: NotRequired[dict[str, float]]


def summary(path: str, kind: str) -> ModelSummary:
    """Where it comes from and what it acts on. Raises FileNotFoundError for a run without a complete checkpoint."""
    if kind == "bundle":
        return _of_bundle(path)
    from pipelines.publishing.trained_model import find_checkpoint
    from pipelines.training.checkpoint_metadata import CheckpointMetadata
    from pipelines.training.run_files import METRICS, read_metrics

    folder, checkpoint = find_checkpoint(path)
    metadata = CheckpointMetadata.of(checkpoint)
    experiment = metadata.experiment
    described: ModelSummary = {
        "kind": kind,
        "path": path,
        "step": checkpoint.step,
        "steps": experiment["loop"]["steps"],
        "model": experiment["model"]["type"],
        **_of_contract(metadata.contract),
        "stores": [reference.path for reference in metadata.stores],
        "git_revision": metadata.git_revision,
        "recipe": experiment["name"],
        "mlflow_run_id": metadata.mlflow_run_id,
        "bytes": sum(entry.size for entry in checkpoint.manifest.files),
    }
    if kind == "run":
        newest: dict[str, float] = {}
        for line in read_metrics(f"{path}/{METRICS}"):
            newest |= line
        described["checkpoints"] = [each.step for each in folder.all()]
        described["metrics"] = {key: newest[key] for key in ("loss", "validation_loss") if key in newest}
    return described


def _of_bundle(path: str) -> ModelSummary:
    files, root = open_files(path)
    try:
        described = json.loads(files.cat_file(f"{root}/{_DESCRIPTION}"))
        metadata = described["metadata"]
        return {
            "kind": "bundle",
            "path": path,
            "step": described["step"],
            "source": described["source"],
            "model": described["model"]["type"],
            **_of_contract(Contract.from_json(described["contract"])),
            "stores": list(metadata.get("stores") or []),
            "git_revision": metadata.get("git_revision"),
            "bytes": files.size(f"{root}/{_WEIGHTS}"),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}/{_DESCRIPTION} does not describe a model ({error!r}): export it again") from error


class _OfContract(TypedDict):
    contract: str
    action: str
    encoder: str
    image: str
    datasets: list[str]


def _of_contract(contract: Contract) -> _OfContract:
    return {
        "contract": contract.id,
        "action": contract.action.name,
        "encoder": contract.encoder,
        "image": f"{contract.image.height}x{contract.image.width}",
        "datasets": [f"{dataset.name} {dataset.version}" for dataset in contract.datasets],
    }


def text(model: ModelSummary) -> str:
    """A summary to read in a terminal, one fact per line."""
    of_recipe = f" of {model['recipe']}" if "recipe" in model else ""
    of_steps = f" of {model['steps']}" if "steps" in model else ""
    rows = {
        "what": f"{model['kind']}{of_recipe}, at step {model['step']}{of_steps}",
        "model": f"{model['model']}, {model['bytes'] / 1e6:.1f} MB",
        "acts in": f"{model['action']}, frames {model['image']}",
        "instructions": f"by {model['encoder']}",
        "datasets": ", ".join(model["datasets"]) or "none: import its weights again with --data",
        "trained on": "\n".join(model["stores"]),
        "from": model.get("source"),
        "checkpoints": ", ".join(f"step {step}" for step in model.get("checkpoints", [])),
        "metrics": ", ".join(f"{name} {value:.4f}" for name, value in model.get("metrics", {}).items()),
        "MLflow run": model.get("mlflow_run_id"),
        "contract": model["contract"],
        "revision": model["git_revision"],
    }
    cells = {name: str(value).split("\n") for name, value in rows.items() if value}
    lines = [
        f"{name if not place else '':<14}{part}" for name, parts in cells.items() for place, part in enumerate(parts)
    ]
    return "\n".join([model["path"], *lines])
