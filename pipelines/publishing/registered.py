"""A registered model from MLflow's registry: bare, to be evaluated, or as MLflow runs it, to be asked for actions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.publishing.folder import DESCRIPTION, TrainedModel, read_bundle
from pipelines.tracking.mlflow_run import connect, explained, tracking_uri

Prediction = dict[str, Any]


Frame = bytes | str | np.ndarray | Sequence[Any]


def fetch_registered(model_uri: str) -> TrainedModel:
    """The bare model behind models:/NAME@ALIAS or models:/NAME/VERSION, to be evaluated rather than asked for actions.

    Raises ConnectionError where the registry does not know it, ValueError for what rtp register has not put there.
    """
    require_registered(model_uri)
    mlflow = connect(tracking_uri())
    with tempfile.TemporaryDirectory(prefix="registered-") as scratch:
        with explained(tracking_uri()):
            folder = mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=scratch)
        policy = Path(folder) / "artifacts/policy"
        if not (policy / DESCRIPTION).is_file():
            raise ValueError(f"{model_uri} is not a policy: register it with rtp register")
        return read_bundle(policy)


def require_registered(model_uri: str) -> None:
    if not model_uri.startswith("models:/"):
        raise ValueError(f"{model_uri} is no registered model: give models:/NAME@ALIAS or models:/NAME/VERSION")


def load_registered(model_uri: str, uri: str | None = None) -> Callable[..., list[Prediction]]:
    """A function (images, instructions, robots=None) -> one row per frame as `MlflowPolicy` answers."""
    uri = uri or tracking_uri()
    with explained(uri):
        model = connect(uri).pyfunc.load_model(model_uri)

    def predict(
        images: Sequence[Frame], instructions: Sequence[str], robots: Sequence[str] | None = None
    ) -> list[Prediction]:
        columns: dict[str, Any] = {"image": list(images), "instruction": list(instructions)}
        if robots is not None:
            columns["robot"] = list(robots)
        return model.predict(pd.DataFrame(columns)).to_dict("records")

    return predict
