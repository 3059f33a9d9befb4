"""The policy as MLflow serves it: a camera frame and an instruction in, a named action in physical units out.

MLflow loads this file itself ("models from code": nothing is pickled) together with the packages it imports, which
`pipelines/register.py` stores beside the weights. `rtp serve` answers over HTTP.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from pipelines.arguments import parse
from pipelines.bundle import TrainedModel, read_bundle
from pipelines.tracking import connect, explained, tracking_uri
from preprocessing.embeddings import embed_texts
from preprocessing.images import decode_image, resize_image
from rt_models.policy import Policy
from rt_models.spec import ImageRecipe

Prediction = dict[str, float]


class RobotPolicy(PythonModel):
    """Rows of `image` (PNG or JPEG bytes), `instruction` (text) and optionally `robot` (any name) -> named actions.

    Rows with the same `robot` are successive frames of one episode, over all calls; a new instruction begins a new
    episode. A row without `robot` is an episode's first frame.
    """

    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["policy"])
        trained = read_bundle(folder)
        self._model, self._contract = trained.model, trained.contract
        with np.load(folder / "instructions.npz", allow_pickle=False) as table:
            self._known = dict(zip(table["texts"].tolist(), table["embeddings"], strict=True))
        self._robots: dict[tuple[str, str], Policy] = {}

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        dataset = (params or {}).get("dataset") or self._contract.datasets[0].name
        robots = model_input["robot"] if "robot" in model_input else [None] * len(model_input)
        rows = zip(model_input["image"], model_input["instruction"], robots, strict=True)
        actions = [self._act(image, text, robot, dataset) for image, text, robot in rows]
        return pd.DataFrame(actions, columns=list(self._contract.action.names))

    def _act(self, image: bytes, instruction: str, robot: str | None, dataset: str) -> list[float]:
        frame = camera_frame(image, self._contract.image)
        if robot is None or pd.isna(robot):
            policy = self._policy(dataset)
        elif (robot, dataset) in self._robots:
            policy = self._robots[robot, dataset]
        else:
            policy = self._robots[robot, dataset] = self._policy(dataset)
        values = self._contract.dataset(dataset).completed(policy.act(frame, instruction).values)
        return values.astype(float).tolist()

    def _policy(self, dataset: str) -> Policy:
        return Policy(self._model, transform=self._contract.dataset(dataset).transform, encode=self._embedding)

    def _embedding(self, text: str) -> np.ndarray:
        """The training stores' vector of a known instruction, else the encoder's."""
        if text in self._known:
            return self._known[text]
        encoder = self._contract.encoder
        try:
            return embed_texts(encoder, [text])[0]
        except (ValueError, OSError, ImportError) as error:
            raise ValueError(
                f"instruction {text!r} is not one of the {len(self._known)} that this policy was trained on, and its "
                f"encoder {encoder} cannot run here ({error}): send a known instruction"
            ) from error


def fetch_registered(model_uri: str) -> TrainedModel:
    """The bare model behind models:/NAME@ALIAS or models:/NAME/VERSION, to be evaluated rather than asked for actions.

    Raises ConnectionError where the registry does not know it.
    """
    mlflow = connect(tracking_uri())
    with tempfile.TemporaryDirectory(prefix="registered-") as scratch:
        with explained(tracking_uri()):
            folder = mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=scratch)
        return read_bundle(Path(folder) / "artifacts/policy")


def camera_frame(image: bytes, recipe: ImageRecipe) -> np.ndarray:
    """uint8 (H, W, 3) as the training frames were. Raises ValueError for what is no image or has another size."""
    if not isinstance(image, bytes | bytearray):
        raise ValueError(f"image must be PNG or JPEG bytes, got {type(image).__name__}")
    frame = decode_image(bytes(image))
    height, width = recipe.height, recipe.width
    if frame.shape[:2] == (height, width):
        return frame
    if recipe.resize == "none":
        raise ValueError(
            f"the camera frame is {frame.shape[0]}x{frame.shape[1]}, this policy was trained on {height}x{width} as "
            f"the camera gave it: send frames of that size, or train on a store made with --image-size"
        )
    return resize_image(frame, height, width, recipe.resize)


def load_registered(model_uri: str, uri: str | None = None) -> Callable[..., list[Prediction]]:
    """A function (images, instructions, robots=None) -> one named action a row, from the MLflow registry."""
    uri = uri or tracking_uri()
    with explained(uri):
        model = connect(uri).pyfunc.load_model(model_uri)

    def predict(
        images: Sequence[bytes], instructions: Sequence[str], robots: Sequence[str] | None = None
    ) -> list[Prediction]:
        columns: dict[str, Any] = {"image": list(images), "instruction": list(instructions)}
        if robots is not None:
            columns["robot"] = list(robots)
        return model.predict(pd.DataFrame(columns)).to_dict("records")

    return predict


@dataclass(frozen=True, kw_only=True)
class ServeArguments:
    """Flags of `rtp serve`."""

    model: tyro.conf.Positional[str]
    """A registered model: models:/NAME@ALIAS or models:/NAME/VERSION."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this machine only."""
    port: int = 5001
    """TCP port."""


def main(arguments: list[str]) -> dict[str, Any]:
    """Serve over HTTP (POST /invocations, MLflow's scoring protocol) until stopped."""
    given = parse(ServeArguments, arguments, prog="rtp serve", description=__doc__ or "")
    load_registered(given.model)  # so that a wrong name fails here, in one sentence
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", given.model, "--env-manager", "local"]
    address = ["--host", given.host, "--port", str(given.port)]
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # MLflow calls uvicorn
    environment = os.environ | {"MLFLOW_TRACKING_URI": tracking_uri(), "PATH": programs}
    print(f"serving {given.model} at http://{given.host}:{given.port}/invocations", flush=True)
    return {"exit_code": subprocess.run([*command, *address], env=environment, check=False).returncode}


set_model(RobotPolicy())
