"""The policy as MLflow serves it: a camera frame and an instruction in, a named action in physical units out.

MLflow loads this file itself ("models from code": nothing is pickled) together with the packages it imports, which
`pipelines/register.py` stores beside the weights. `rtp serve` answers over HTTP.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from PIL import Image

from pipelines.arguments import parse
from pipelines.bundle import DESCRIPTION, TrainedModel, read_bundle
from pipelines.tracking import connect, explained, tracking_uri, with_password
from preprocessing.embeddings import embed_texts
from preprocessing.images import decode_image, resize_image
from rt_models.policy import Policy
from rt_models.rt1 import RT1
from rt_models.rt2_policy import RT2Policy
from rt_models.spec import EMBEDDING_WIDTH, ImageRecipe

log = logging.getLogger(__name__)

Prediction = dict[str, float]
Frame = bytes | str | np.ndarray | Sequence[Any]

MAX_ROBOTS = 256  # histories kept; RT-1's takes 100 kB. The robot unheard of for longest is forgotten first.


class RobotPolicy(PythonModel):
    """Rows of camera frames and instructions -> rows of named actions.

    image: PNG or JPEG bytes, raw RGB bytes of the training frames' size, or a uint8 array (H, W, 3); over HTTP the
        bytes in base64, or nested lists.
    instruction: text; or for an RT-1 also embedding: 512 numbers of the policy's own encoder.
    robot (optional): rows of one robot are successive frames of one episode, over all calls; a new instruction begins
        a new episode, and so does `reset`. A row without it is an episode's first frame.
    reset (optional): true where the row is an episode's first frame.

    Parameters: `dataset` whose units and scaling the actions have, where the policy was trained on several; `contract`,
    the id that the caller was built for: another policy refuses.
    """

    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["policy"])
        trained = read_bundle(folder)
        self._model, self._contract = trained.model, trained.contract
        with np.load(folder / "instructions.npz", allow_pickle=False) as table:
            self._known = dict(zip(table["texts"].tolist(), table["embeddings"], strict=True))
        self._encoded = lru_cache(1024)(self._encode)
        self._text = None if isinstance(self._model, RT1) else self._model.config.build_text()
        self._robots: OrderedDict[tuple[str, str], Policy | RT2Policy] = OrderedDict()
        self._one_call = threading.Lock()  # a server answers several requests at once, a robot's history has one order

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        given = params or {}
        self._require_contract(given.get("contract"))
        dataset = self._contract.dataset(given.get("dataset") or self._contract.datasets[0].name).name
        # All rows are read before the first moves a history: a call fails as a whole and can be sent again.
        rows = [self._read(number, row) for number, row in enumerate(model_input.to_dict("records"))]
        with self._one_call:
            actions = [self._act(row, dataset) for row in rows]
        return pd.DataFrame(actions, columns=list(self._contract.action.names))

    def _require_contract(self, expected: str | None) -> None:
        if expected and expected != self._contract.id:
            raise ValueError(
                f"contract {expected} was asked for, this policy has {self._contract.id}: load the policy that the "
                f"robot was set up for, or set the robot up for this one"
            )

    def _read(self, number: int, row: dict[Any, Any]) -> _Request:
        try:
            return _Request(
                frame_HWC=camera_frame(row.get("image"), self._contract.image),
                instruction=self._instruction(row.get("instruction"), row.get("embedding")),
                robot=None if _missing(row.get("robot")) else str(row["robot"]),
                reset=_flag(row.get("reset")),
            )
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error

    def _act(self, row: _Request, dataset: str) -> list[float]:
        policy = self._policy(dataset) if row.robot is None else self._history(row.robot, dataset)
        if row.reset:
            policy.reset()
        action = policy.act(row.frame_HWC, row.instruction)  # type: ignore[arg-type]  # only RT-1 is given embeddings
        values = self._contract.dataset(dataset).completed(action.values)
        return values.astype(float).tolist()

    def _history(self, robot: str, dataset: str) -> Policy | RT2Policy:
        key = robot, dataset
        self._robots[key] = self._robots.pop(key, None) or self._policy(dataset)
        if len(self._robots) > MAX_ROBOTS:
            (forgotten, _), _ = self._robots.popitem(last=False)
            log.warning("more than %d robots: the history of %r is forgotten", MAX_ROBOTS, forgotten)
        return self._robots[key]

    def _policy(self, dataset: str) -> Policy | RT2Policy:
        side = self._contract.dataset(dataset)
        if isinstance(self._model, RT1):
            return Policy(self._model, transform=side.transform)
        assert self._text is not None
        return RT2Policy(self._model, self._text, transform=side.transform, action_mask=side.action_mask)

    def _instruction(self, text: Any, vector: Any) -> str | np.ndarray:
        """What the model reads: RT-2 the text; RT-1 float32 (512,), the given vector, the training stores' of a known
        instruction, or else the encoder's."""
        if not _missing(vector):
            return self._vector(vector)
        if _missing(text) or (text not in self._known and not str(text).strip()):
            raise ValueError("there is no instruction: give a text as instruction, or its vector as embedding")
        if self._text is not None:
            return str(text)
        return self._known[text] if text in self._known else self._encoded(str(text))

    def _vector(self, vector: Any) -> np.ndarray:
        embedding = _numbers(vector)
        if self._text is not None:
            raise ValueError("this policy reads instructions as text: send instruction instead of embedding")
        if (
            embedding.shape != (EMBEDDING_WIDTH,)
            or embedding.dtype.kind not in "fiu"
            or not np.isfinite(embedding).all()
        ):
            raise ValueError(f"embedding must be {EMBEDDING_WIDTH} finite numbers, got {_said(vector)}")
        return embedding.astype(np.float32)

    def _encode(self, text: str) -> np.ndarray:
        encoder = self._contract.encoder
        try:
            return embed_texts(encoder, [text])[0]
        except (ValueError, OSError, ImportError) as error:
            raise ValueError(
                f"instruction {text!r} is not one of the {len(self._known)} that this policy was trained on, and its "
                f"encoder {encoder} cannot run here ({error}): send a known instruction, or an embedding"
            ) from error


@dataclass(frozen=True, kw_only=True)
class _Request:
    """One row, read."""

    frame_HWC: np.ndarray
    instruction: str | np.ndarray
    robot: str | None
    reset: bool


def camera_frame(image: Any, recipe: ImageRecipe) -> np.ndarray:
    """uint8 (H, W, 3) as the training frames were. Raises ValueError for what is no image or has another size."""
    frame = _pixels(_decoded_text(image) if isinstance(image, str) else image, recipe)
    height, width = recipe.height, recipe.width
    if frame.shape[:2] == (height, width):
        return frame
    if recipe.resize == "none":
        raise ValueError(
            f"the camera frame is {frame.shape[0]}x{frame.shape[1]}, this policy was trained on {height}x{width} as "
            f"the camera gave it: send frames of that size, or train on a store made with --image-size"
        )
    return resize_image(frame, height, width, recipe.resize)


def _pixels(image: Any, recipe: ImageRecipe) -> np.ndarray:
    if isinstance(image, bytes | bytearray | memoryview):
        encoded = bytes(image)
        if len(encoded) == recipe.height * recipe.width * 3 and not encoded.startswith(_HEADERS):
            return np.frombuffer(encoded, np.uint8).reshape(recipe.height, recipe.width, 3).copy()
        try:
            _require_colours(encoded)
            return decode_image(encoded)
        except _UNDECODABLE as error:
            raise ValueError(f"image cannot be decoded: {error}") from error
    frame = _numbers(image) if isinstance(image, np.ndarray | list | tuple) else np.zeros(0)
    if frame.dtype.kind in "iu" and frame.size and frame.min() >= 0 and frame.max() <= 255:
        frame = frame.astype(np.uint8)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise ValueError(
            f"image must be PNG or JPEG bytes, raw RGB bytes of {recipe.height}x{recipe.width}, or a uint8 array "
            f"(H, W, 3), got {_said(image)}"
        )
    return frame


def _require_colours(encoded: bytes) -> None:
    """Raise ValueError for a picture of 16 or 32 bits a pixel, of which 8 bits would be a picture too, all white."""
    if not encoded.startswith(_HEADERS[0]):
        with contextlib.suppress(Image.UnidentifiedImageError), Image.open(io.BytesIO(encoded)) as picture:
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"image has the mode {picture.mode}, as depth images have: send a colour image")


# Pillow's: for a picture that ends too early, and for one too large to be a camera's.
_UNDECODABLE = (OSError, SyntaxError, Image.DecompressionBombError)
_HEADERS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def _decoded_text(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("image is a text that is not base64: encode the frame's bytes so") from None


def _numbers(value: Any) -> np.ndarray:
    """The array of nested sequences, also where a data frame has made the outer ones arrays of objects."""
    try:
        return np.array(value.tolist() if isinstance(value, np.ndarray) and value.dtype == object else value)
    except ValueError:  # sequences of unequal length
        return np.zeros(())


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))


def _flag(value: Any) -> bool:
    if not _missing(value) and not isinstance(value, bool | np.bool_):
        raise ValueError(f"reset must be true or false, got {value!r}")
    return not _missing(value) and bool(value)


def _said(value: Any) -> str:
    if isinstance(value, np.ndarray | list | tuple):
        array = _numbers(value)
        return f"{array.dtype} {array.shape}" if array.ndim else "sequences of unequal length"
    return "nothing" if _missing(value) else type(value).__name__


def fetch_registered(model_uri: str) -> TrainedModel:
    """The bare model behind models:/NAME@ALIAS or models:/NAME/VERSION, to be evaluated rather than asked for actions.

    Raises ConnectionError where the registry does not know it, ValueError for what rtp register has not put there.
    """
    _require_registered(model_uri)
    mlflow = connect(tracking_uri())
    with tempfile.TemporaryDirectory(prefix="registered-") as scratch:
        with explained(tracking_uri()):
            folder = mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=scratch)
        policy = Path(folder) / "artifacts/policy"
        if not (policy / DESCRIPTION).is_file():
            raise ValueError(f"{model_uri} is not a policy: register it with rtp register")
        return read_bundle(policy)


def _require_registered(model_uri: str) -> None:
    if not model_uri.startswith("models:/"):
        raise ValueError(f"{model_uri} is no registered model: give models:/NAME@ALIAS or models:/NAME/VERSION")


def load_registered(model_uri: str, uri: str | None = None) -> Callable[..., list[Prediction]]:
    """A function (images, instructions, robots=None) -> one named action a row, from the MLflow registry."""
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
    _require_registered(given.model)
    _require_free(given.host, given.port)
    contract = fetch_registered(given.model).contract  # so that a wrong name fails here, in one sentence
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", given.model, "--env-manager", "local"]
    address = ["--host", given.host, "--port", str(given.port), "--workers", "1"]  # histories live in one process
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # MLflow calls uvicorn
    environment = os.environ | {"MLFLOW_TRACKING_URI": with_password(tracking_uri()), "PATH": programs}
    print(f"serving {given.model}, contract {contract.id}, at http://{given.host}:{given.port}/invocations", flush=True)
    return {"exit_code": subprocess.run([*command, *address], env=environment, check=False).returncode}


def _require_free(host: str, port: int) -> None:
    """Raise OSError where the server could not listen."""
    if not 0 < port < 2**16:
        raise ValueError(f"--port {port}: a TCP port is from 1 to 65535")
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror}") from error


set_model(RobotPolicy())
