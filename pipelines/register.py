"""`rtp register`: a checkpoint becomes a version of a registered MLflow model that acts on raw camera frames.

The version carries weights (safetensors), configuration, contract, the instruction table of its training stores and
the code it needs; `pipelines/serve.py` is how it predicts.
"""

from __future__ import annotations

import importlib.metadata
import io
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from PIL import Image

import pipelines
import preprocessing
import rt_models
from pipelines.arguments import parse
from pipelines.bundle import TrainedModel, write_bundle
from pipelines.checkpoints import load_trained
from pipelines.tracking import TrainingRun, connect, explained, tracking_uri
from preprocessing.episode_store import EpisodeStore

# What serve.py imports; MLflow brings pyarrow itself.
_NEEDED = ("torch", "numpy", "pandas", "einops", "safetensors", "simplejpeg", "pillow", "tyro", "mlflow")


@dataclass(frozen=True, kw_only=True)
class RegisterArguments:
    """Flags of `rtp register`."""

    checkpoint: tyro.conf.Positional[str]
    """The output folder of rtp train, or one checkpoint in it, or what rtp import-weights wrote."""
    name: str
    """Name of the registered model."""
    alias: str | None = None
    """Alias to point at the new version, such as champion."""


def main(arguments: list[str]) -> dict[str, Any]:
    """Parse the command line and register."""
    given = parse(RegisterArguments, arguments, prog="rtp register", description=__doc__ or "")
    result = register(given.checkpoint, name=given.name, alias=given.alias)
    print(f"registered {result['model_uri']} (version {result['version']}) at {result['tracking_uri']}")
    return result


def register(checkpoint: str, *, name: str, alias: str | None = None) -> dict[str, Any]:
    """Register the newest model under `checkpoint`; where it can be loaded from.

    The version belongs to the training's own MLflow run. Raises FileNotFoundError where a training store, whose
    instruction table is carried along, cannot be read, and ValueError where imported weights were given no store.
    """
    trained = load_trained(checkpoint)
    if not trained.metadata["stores"]:
        raise ValueError(f"{checkpoint} is bound to no episode store: import its weights again with --data STORE")
    uri = tracking_uri()
    mlflow = connect(uri)
    run_id = _run_of(trained, uri)
    with explained(uri), tempfile.TemporaryDirectory() as scratch, mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name="policy",
            python_model=str(Path(__file__).with_name("serve.py")),
            artifacts={"policy": str(_bundle(trained, Path(scratch)))},
            code_paths=[str(Path(package.__path__[0])) for package in (pipelines, preprocessing, rt_models)],
            pip_requirements=[_pinned(package) for package in _NEEDED],
            signature=signature(trained),
            input_example=example(trained),
            registered_model_name=name,
        )
        client, version = mlflow.MlflowClient(), str(info.registered_model_version)
        for key, value in _tags(trained).items():
            client.set_model_version_tag(name, version, key, value)
        if alias is not None:
            client.set_registered_model_alias(name, alias, version)
    model_uri = f"models:/{name}@{alias}" if alias else f"models:/{name}/{version}"
    return {"model_uri": model_uri, "version": version, "tracking_uri": uri, "run_id": run_id}


def signature(trained: TrainedModel) -> ModelSignature:
    """Columns in and out; the output's names are the action dimensions."""
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.binary, "image"),
        ColSpec(DataType.string, "instruction"),
        ColSpec(DataType.string, "robot", required=False),
    ]
    names = trained.contract.action.names
    outputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.double, name) for name in names]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def example(trained: TrainedModel) -> pd.DataFrame:
    """One grey camera frame with the first known instruction."""
    recipe, frame = trained.contract.image, io.BytesIO()
    Image.new("RGB", (recipe.width, recipe.height), (128, 128, 128)).save(frame, "PNG")
    text = EpisodeStore.open(trained.metadata["stores"][0], split="train").instruction_texts[0]
    return pd.DataFrame({"image": [frame.getvalue()], "instruction": [text]})


def _bundle(trained: TrainedModel, scratch: Path) -> Path:
    """The folder of artifacts that `serve.RobotPolicy` loads."""
    folder = scratch / "policy"
    folder.mkdir()
    write_bundle(trained, folder)
    table: dict[str, np.ndarray] = {}
    for path in trained.metadata["stores"]:
        store = EpisodeStore.open(path, split="train")
        table |= dict(zip(store.instruction_texts, store.embeddings, strict=True))
    np.savez(
        folder / "instructions.npz", texts=np.array(list(table), dtype=str), embeddings=np.stack([*table.values()])
    )
    return folder


def _run_of(trained: TrainedModel, uri: str) -> str:
    """The training's run where this tracking server knows it, else a new one that names the checkpoint."""
    run_id = trained.metadata.get("mlflow_run_id")
    run = TrainingRun(uri=uri, experiment="rt-pipelines", name="registered checkpoint", params={}, run_id=run_id)
    run.tag("checkpoint", trained.source)
    run.finish()
    return run.run_id


def _tags(trained: TrainedModel) -> dict[str, str]:
    metadata = trained.metadata
    return {
        "contract": trained.contract.id,
        "checkpoint": trained.source,
        "step": str(trained.step),
        "stores": ", ".join(metadata["stores"]),
        "git_revision": str(metadata["git_revision"]),
        "python": platform.python_version(),
    }


def _pinned(package: str) -> str:
    return f"{package}=={importlib.metadata.version(package).split('+')[0]}"
