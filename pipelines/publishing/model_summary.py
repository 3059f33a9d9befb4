"""What a trained model's folder is, without reading its weights: a run, one of its checkpoints, or a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import fsspec

from preprocessing.store.shard_files import reaching
from rt_models.spec import Contract

_DESCRIPTION, _WEIGHTS = "policy.json", "model.safetensors"  # pipelines/publishing/folder.py, which imports torch
_MARKS = {_DESCRIPTION: "bundle", "checkpoints": "run", "engine": "checkpoint"}
MODELS = tuple(_MARKS.values())


def kind_of_model(path: str) -> str | None:
    """run, checkpoint or bundle; None if `path` holds no model."""
    with reaching(path):
        files, root = fsspec.core.url_to_fs(path)
        return next((kind for name, kind in _MARKS.items() if files.exists(f"{root.rstrip('/')}/{name}")), None)


def summary(path: str, kind: str) -> dict[str, Any]:
    """Where it comes from and what it acts on. Raises FileNotFoundError for a run without a complete checkpoint."""
    if kind == "bundle":
        return _of_bundle(path)
    from pipelines.publishing.trained_model import find_checkpoint
    from pipelines.training.checkpoint_metadata import CheckpointMetadata
    from pipelines.training.run_files import METRICS, read_metrics

    folder, checkpoint = find_checkpoint(path)
    metadata = CheckpointMetadata.of(checkpoint)
    experiment = metadata.experiment
    found = {
        "kind": kind,
        "path": path,
        "step": checkpoint.step,
        "steps": experiment["loop"]["steps"],
        **_common(
            experiment["model"],
            metadata.contract,
            stores=[reference.path for reference in metadata.stores],
            git_revision=metadata.git_revision,
        ),
        "recipe": experiment["name"],
        "mlflow_run_id": metadata.mlflow_run_id,
        "bytes": sum(entry.size for entry in checkpoint.manifest.files),
    }
    if kind == "run":
        newest: dict[str, Any] = {}
        for line in read_metrics(f"{path}/{METRICS}"):
            newest |= line
        found["checkpoints"] = [each.step for each in folder.all()]
        found["metrics"] = {key: newest[key] for key in ("loss", "validation_loss") if key in newest}
    return found


def _of_bundle(path: str) -> dict[str, Any]:
    files, root = fsspec.core.url_to_fs(path)
    try:
        described = json.loads(files.cat_file(f"{root}/{_DESCRIPTION}"))
        metadata = described["metadata"]
        return {
            "kind": "bundle",
            "path": path,
            "step": described["step"],
            "source": described["source"],
            **_common(
                described["model"],
                Contract.from_json(described["contract"]),
                stores=list(metadata.get("stores") or []),
                git_revision=metadata.get("git_revision"),
            ),
            "bytes": files.size(f"{root}/{_WEIGHTS}"),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}/{_DESCRIPTION} does not describe a model ({error!r}): export it again") from error


def _common(
    model: Mapping[str, Any], contract: Contract, *, stores: list[str], git_revision: str | None
) -> dict[str, Any]:
    return {
        "model": model["type"],
        "contract": contract.id,
        "action": contract.action.name,
        "encoder": contract.encoder,
        "image": f"{contract.image.height}x{contract.image.width}",
        "datasets": [f"{dataset.name} {dataset.version}" for dataset in contract.datasets],
        "stores": stores,
        "git_revision": git_revision,
    }


def text(found: Mapping[str, Any]) -> str:
    """A summary to read in a terminal, one fact a line."""
    of_recipe = f" of {found['recipe']}" if "recipe" in found else ""
    of_steps = f" of {found['steps']}" if "steps" in found else ""
    rows = {
        "what": f"{found['kind']}{of_recipe}, at step {found['step']}{of_steps}",
        "model": f"{found['model']}, {found['bytes'] / 1e6:.1f} MB",
        "acts in": f"{found['action']}, frames {found['image']}",
        "instructions": f"by {found['encoder']}",
        "datasets": ", ".join(found["datasets"]) or "none: import its weights again with --data",
        "trained on": "\n".join(found["stores"]),
        "from": found.get("source"),
        "checkpoints": ", ".join(f"step {step}" for step in found.get("checkpoints", [])),
        "metrics": ", ".join(f"{name} {value:.4f}" for name, value in found.get("metrics", {}).items()),
        "MLflow run": found.get("mlflow_run_id"),
        "contract": found["contract"],
        "revision": found["git_revision"],
    }
    told = {name: str(value).split("\n") for name, value in rows.items() if value}
    lines = [
        f"{name if not place else '':<14}{part}" for name, parts in told.items() for place, part in enumerate(parts)
    ]
    return "\n".join([str(found["path"]), *lines])
