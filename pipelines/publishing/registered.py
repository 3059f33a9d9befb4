"""A registered model from MLflow's registry: bare, as `load_trained` reads it, or as MLflow runs it."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.publishing.folder import DESCRIPTION, WEIGHTS, TrainedModel, read_bundle
from pipelines.tracking.mlflow_run import connect_to_registry, explained, tracking_uri
from preprocessing.store.json_files import JsonObject

Prediction = dict[str, Any]
Frame = bytes | str | np.ndarray | Sequence[object]

_SCHEME = "models:/"


def is_registered(source: str) -> bool:
    """Whether `source` names a registered model and not a folder."""
    return source.startswith(_SCHEME)


def fetch_registered(model_uri: str, uri: str | None = None, device: torch.device | None = None) -> TrainedModel:
    """The bare model behind models:/NAME@ALIAS or models:/NAME/VERSION of the tracking server `uri`, on `device`.

    Raises ConnectionError if the registry does not know it, ValueError if rtp register did not write it.
    """
    scratch = Path(tempfile.mkdtemp(prefix="registered-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)  # a pretrained model's tokenizer is read from it later
    policy = _downloaded(model_uri, "artifacts/policy", scratch, uri)
    trained = read_bundle(policy, device)
    (policy / WEIGHTS).unlink()
    return replace(trained, source=model_uri)


def describe_registered(model_uri: str, uri: str | None = None) -> JsonObject:
    """Its policy.json, without the weights. Raises as `fetch_registered` does."""
    with tempfile.TemporaryDirectory(prefix="registered-") as scratch:
        return json.loads(_downloaded(model_uri, f"artifacts/policy/{DESCRIPTION}", Path(scratch), uri).read_text())


def version_of(model_uri: str, uri: str | None = None) -> str:
    """models:/NAME/VERSION, which is fixed, of models:/NAME@ALIAS, which may move.

    Raises ValueError, with those there are, for a name without either and for one that the registry does not know.
    """
    name, _, alias = model_uri.removeprefix(_SCHEME).partition("@")
    if not name or not (alias or "/" in name):
        raise ValueError(f"{model_uri} names no version of a model: give models:/NAME@ALIAS or models:/NAME/VERSION")
    if not alias:
        return model_uri
    uri = uri or tracking_uri()
    client = connect_to_registry(uri, model_uri).MlflowClient()
    with explained(uri):
        from pipelines.publishing.aliases import known_model  # MLflow, which a training without --init does without

        aliases = known_model(client, name).aliases
    if alias not in aliases:
        there = ", ".join(f"@{each}" for each in sorted(aliases)) or "no alias, so give models:/NAME/VERSION"
        raise ValueError(f"{name} has no alias {alias!r}: it has {there}")
    return f"{_SCHEME}{name}/{aliases[alias]}"


def _downloaded(model_uri: str, part: str, scratch: Path, uri: str | None) -> Path:
    """The copy, below `scratch`, of a file or folder of the model."""
    uri = uri or tracking_uri()
    version = version_of(model_uri, uri)
    mlflow = connect_to_registry(uri, model_uri)
    with explained(uri):
        if "artifacts" not in [file.path for file in mlflow.artifacts.list_artifacts(artifact_uri=version)]:
            raise ValueError(f"{model_uri} is not a policy: register it with rtp register")
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{version}/{part}", dst_path=str(scratch)))


def load_registered(model_uri: str, uri: str | None = None) -> Callable[..., list[Prediction]]:
    """A function (images, instructions, robots=None) -> one row per frame as `MlflowPolicy` answers."""
    import pandas as pd  # MLflow has it loaded; trainings that read no registered model do without

    uri = uri or tracking_uri()
    with explained(uri):
        model = connect_to_registry(uri, model_uri).pyfunc.load_model(model_uri)

    def predict(
        images: Sequence[Frame], instructions: Sequence[str], robots: Sequence[str] | None = None
    ) -> list[Prediction]:
        columns: dict[str, object] = {"image": list(images), "instruction": list(instructions)}
        if robots is not None:
            columns["robot"] = list(robots)
        return model.predict(pd.DataFrame(columns)).to_dict("records")

    return predict
