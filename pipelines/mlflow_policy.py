"""The policy as MLflow runs it: a camera frame and an instruction in, a named action in physical units out.

MLflow loads this file itself ("models from code": nothing is pickled) together with the packages it imports, which
`pipelines/register.py` stores beside the weights.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from pipelines.bundle import read_bundle
from pipelines.request_values import camera_frame, described, flag, is_missing, numbers
from preprocessing.embeddings import embed_texts
from rt_models.policy import Policy
from rt_models.rt1 import RT1
from rt_models.rt2_policy import RT2Policy
from rt_models.spec import EMBEDDING_WIDTH

log = logging.getLogger(__name__)

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
                robot=None if is_missing(row.get("robot")) else str(row["robot"]),
                reset=flag(row.get("reset")),
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
        if not is_missing(vector):
            return self._vector(vector)
        if is_missing(text) or (text not in self._known and not str(text).strip()):
            raise ValueError("there is no instruction: give a text as instruction, or its vector as embedding")
        if self._text is not None:
            return str(text)
        return self._known[text] if text in self._known else self._encoded(str(text))

    def _vector(self, vector: Any) -> np.ndarray:
        embedding = numbers(vector)
        if self._text is not None:
            raise ValueError("this policy reads instructions as text: send instruction instead of embedding")
        if (
            embedding.shape != (EMBEDDING_WIDTH,)
            or embedding.dtype.kind not in "fiu"
            or not np.isfinite(embedding).all()
        ):
            raise ValueError(f"embedding must be {EMBEDDING_WIDTH} finite numbers, got {described(vector)}")
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


set_model(RobotPolicy())
