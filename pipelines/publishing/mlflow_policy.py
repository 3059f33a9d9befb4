"""The policy as MLflow runs it: a camera frame and an instruction in, a named action in physical units out.

MLflow loads this file itself ("models from code": nothing is pickled) together with the files of ours that it imports,
which `mlflow_model.py` puts beside the weights.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc import PyFuncModel
from mlflow.pyfunc.model import PythonModel, PythonModelContext

import rt_models
from pipelines.config.compute import Compute
from pipelines.families.base import Instruction, Policy
from pipelines.publishing.control_rate import rate_factor
from pipelines.publishing.folder import read_bundle
from pipelines.publishing.inference import InferenceModel, NamedAction, named
from pipelines.publishing.objects_meant import ObjectsMeant
from pipelines.publishing.robot_declaration import DECLARATIONS, require_declared
from pipelines.serving.codecs.mlflow_rows import rate_of
from pipelines.serving.request_format import COLUMNS, MAX_ROWS, OBJECTS, PARAMETERS, is_column
from pipelines.serving.request_values import flag, is_missing
from rt_models.control.action import Action
from rt_models.control.observation import Frame, RobotState
from rt_models.object_marks import MarksMissing
from rt_models.spec import MAIN_CAMERA, DatasetContract, ObjectMarks, of_role

log = logging.getLogger(__name__)

MAX_ROBOTS = 256  # histories kept; RT-1's takes 100 kB. The robot unheard of for longest is forgotten first.

_Robot: TypeAlias = tuple[str | None, str]
"""A robot's name and its data set."""


class MlflowPolicy(PythonModel):
    """Rows of camera frames and instructions -> rows of named actions.

    image: PNG or JPEG bytes, raw RGB bytes of the training frames' size, or a uint8 array (H, W, 3); over HTTP the
        bytes in base64, or nested lists. Another size is resized as the training frames were.
    image_ROLE: the same of another camera that the policy reads, such as image_wrist.
    state: of a policy that reads it, physical values by name, or in the contract's order.
    instruction: text; or for an RT-1 also embedding: 512 numbers of the policy's own encoder.
    object_box: of a policy that reads object masks, with the first frame of an episode: where the object meant is in
        the picture that is sent, corners [x0, y0, x1, y1] or a pixel [x, y]; second_object_box likewise, of a second
        object. It holds for the robot's episode; another begins one.
    robot: rows of one robot are successive frames of one episode, over all calls; a new instruction begins a new
        episode, and so does `reset`. Over HTTP, where any caller may use any connection, a policy with a history wants
        it; in Python, rows without it are one robot's.
    reset (optional): true where the row is an episode's first frame.
    stateless (optional): true for an answer to this frame alone, which leaves every history as it is.

    A row of the answer: the value of each dimension; NAME_class, the class of a class dimension by name; absent, the
    dimensions that the dataset does not have and whose values command nothing; frames_seen, how many frames the answer
    rests on.

    Parameters: `dataset` whose units and scaling the actions have, needed where the policy was trained on several;
    `contract`, the id that the caller was built for: another policy refuses; `control_hz`, the robot's rate: another
    than was trained is refused; action_names, action_units, state_names, state_units: lists of what the robot takes for
    the order and units, others are refused. Other parameters are refused.
    """

    def load_context(self, context: PythonModelContext) -> None:
        _leave_the_path_to(context.artifacts["policy"])
        compute = Compute.of_environment()
        self._model = InferenceModel(read_bundle(context.artifacts["policy"], compute.resolved()), compute)
        self._model.warm_up(1)  # so that the first robot does not wait for it
        self._contract = self._model.contract
        self._robots: OrderedDict[_Robot, Policy] = OrderedDict()
        self._marked_for: dict[_Robot, Instruction] = {}
        self._one_call = threading.Lock()  # a server answers several requests at once, a robot's history has one order

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        try:
            return self._answer(model_input, params or {})
        except ValueError as error:
            raise Refused(str(error)) from error

    def _answer(self, table: pd.DataFrame, params: Mapping[str, Any]) -> pd.DataFrame:
        columns, parameters = _as_called(table, params)
        _require_known("parameter", parameters, PARAMETERS)
        _require_known("column", [name for name in columns if not is_column(name)], COLUMNS)
        objects = [name for name in columns if name in OBJECTS]
        if objects and not self._model.reads_object_masks:
            raise ValueError(f"{objects[0]}: this policy reads no object masks: leave it out")
        self._require_contract(params.get("contract"))
        if _is_served() and len(table) > MAX_ROWS:
            raise ValueError(f"{len(table)} rows in one request: at most {MAX_ROWS} are answered, send several")
        dataset = self._contract.dataset(params.get("dataset") or None)
        # All rows are read before the first moves a history: a call fails as a whole and can be sent again.
        rate_factor(dataset, rate_of(params.get("control_hz")), "refuse")
        said = {name: list(params[name]) for name in DECLARATIONS if params.get(name) is not None}
        require_declared({name: names for name, names in said.items() if names}, self._contract, dataset)
        rows = [self._read(number, row, dataset) for number, row in enumerate(table.to_dict("records"))]
        with self._one_call:
            told = self._told(rows, dataset)
            actions = self._act(rows, dataset)
            self._marked_for = {key: told for key, told in (self._marked_for | told).items() if key in self._robots}
        return pd.DataFrame([_record(named(action, self._contract, dataset)) for action in actions])

    def _told(self, rows: list[_Request], dataset: DatasetContract) -> dict[_Robot, Instruction]:
        """Of a policy that reads object masks: the instruction that each robot's marks are for, after these rows.
        Raises ValueError for a row that begins an episode and does not say where the object is."""
        told: dict[_Robot, Instruction] = {}
        for number, row in enumerate(rows if self._model.reads_object_masks else ()):
            key = row.robot, dataset.name
            begun = None if row.reset or row.stateless else told.get(key, self._marked_for.get(key))
            if row.marks is None and (begun is None or not np.array_equal(begun, row.instruction)):
                raise MarksMissing(where=f"row {number}: ")
            if not row.stateless:
                told[key] = row.instruction
        return told

    def _require_contract(self, expected: str | None) -> None:
        if expected and expected != self._contract.id:
            raise ValueError(
                f"contract {expected} was asked for, this policy has {self._contract.id}: load the policy that the "
                f"robot was set up for, or set the robot up for this one"
            )

    def _read(self, number: int, row: Mapping[Hashable, object], dataset: DatasetContract) -> _Request:
        try:
            state = None if is_missing(row.get("state")) else row["state"]
            self._model.require_state(state, dataset)
            pictures = self._pictures(row, dataset)
            frames = self._model.frames(pictures, dataset)
            marks = self._model.marks(ObjectsMeant.of(row.get), pictures, frames, dataset)
            request = _Request(
                frames=frames,
                state=state,
                instruction=self._model.instruction(row.get("instruction"), row.get("embedding")),
                marks=marks,
                robot=None if is_missing(row.get("robot")) else str(row["robot"]),
                reset=flag("reset", row.get("reset")),
                stateless=flag("stateless", row.get("stateless")),
            )
            self._require_history(request)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
        return request

    def _pictures(self, row: Mapping[Hashable, object], dataset: DatasetContract) -> object:
        """The main camera's picture, or where others are read those that the row has, by role."""
        roles = self._model.cameras(dataset)
        if roles == (MAIN_CAMERA,):
            return row.get("image")
        found = {role: row.get(of_role("image", role)) for role in roles}
        return {role: picture for role, picture in found.items() if not is_missing(picture)}

    def _require_history(self, row: _Request) -> None:
        """Raise ValueError if the row does not say which robot's history it continues."""
        if row.stateless and row.robot is not None:
            raise ValueError(f"stateless is an answer without a history, and robot {row.robot!r} has one: give one")
        if row.robot is None and not row.stateless and self._model.num_frames > 1 and _is_served():
            raise ValueError(
                f"this policy looks at the last {self._model.num_frames} frames of a robot, and the row names none: "
                f'add "robot": "arm-1" to continue the episode of that robot, or "stateless": true for an answer to '
                f"this frame alone"
            )

    def _act(self, rows: list[_Request], dataset: DatasetContract) -> list[Action]:
        """The answer to each row. Different robots are answered together, rows of one robot one after another."""
        answers: dict[int, Action] = {}
        for numbers in _turns(rows):
            policies = [self._at(rows[number], dataset) for number in numbers]
            seen = [(rows[n].frames, rows[n].instruction, rows[n].state) for n in numbers]
            frames, instructions, states = zip(*seen, strict=True)
            answers |= zip(numbers, self._model.act(policies, frames, instructions, states), strict=True)
        return [answers[number] for number in range(len(rows))]

    def _at(self, row: _Request, dataset: DatasetContract) -> Policy:
        """The policy that a row is for, as it is before that row's frame."""
        policy = self._model.episode(dataset) if row.stateless else self._history(row.robot, dataset)
        if row.reset:
            policy.reset()
        if row.marks is not None:
            self._model.mark(policy, row.marks)
        return policy

    def _history(self, robot: str | None, dataset: DatasetContract) -> Policy:
        key = robot, dataset.name
        self._robots[key] = self._robots.pop(key, None) or self._model.episode(dataset)
        if len(self._robots) > MAX_ROBOTS:
            (forgotten, _), _ = self._robots.popitem(last=False)
            log.warning("more than %d robots: the history of %r is forgotten", MAX_ROBOTS, forgotten)
        return self._robots[key]


class Refused(MlflowException, ValueError):
    """What a caller did wrong, in one sentence; over HTTP status 400 with it as the message."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, error_code=BAD_REQUEST)

    @property
    def message(self) -> str:
        return str(self.args[0])

    @message.setter
    def message(self, value: str) -> None:
        """Nothing: MLflow's server would put the rows of the request before the reason."""


@dataclass(frozen=True, kw_only=True)
class _Request:
    """One row of the table, parsed."""

    frames: Frame
    state: RobotState
    instruction: Instruction
    marks: ObjectMarks | None
    robot: str | None
    reset: bool
    stateless: bool


def _turns(rows: list[_Request]) -> list[list[int]]:
    """The rows' numbers in turns with at most one row per robot: the first rows of all robots, then the second, ..."""
    turns: list[list[int]] = []
    seen: Counter[str | None] = Counter()
    for number, row in enumerate(rows):
        turn = 0 if row.stateless else seen[row.robot]
        seen[row.robot] += not row.stateless
        turns += [[]] if turn == len(turns) else []
        turns[turn].append(number)
    return turns


def class_column(dimension: str) -> str:
    """The column that names a class dimension's class."""
    return f"{dimension}_class"


def _record(action: NamedAction) -> dict[str, object]:
    classes = {class_column(dimension): name for dimension, name in action.classes.items()}
    return {**action.values, **classes, "absent": list(action.absent), "frames_seen": action.frames_seen}


def _leave_the_path_to(policy: str) -> None:
    """Take the model's own copy of our code off `sys.path` where this process runs another copy.

    MLflow puts the copy first. It holds what a policy needs and no more: a child process, which starts with this
    path, would import some modules from the copy and miss others.
    """
    code = Path(policy).parents[1] / "code"
    if not Path(rt_models.__file__).resolve().is_relative_to(code.resolve()):
        sys.path[:] = [entry for entry in sys.path if Path(entry) != code]


def _as_called(table: pd.DataFrame, params: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Columns and parameters that the caller gave MLflow's model, which hands on only those of the signature.

    Dropped in silence, a misspelt `robot` would cost the history and a misspelt `dataset` the scale. MLflow (3.17) has
    no setting that refuses them, so they are read from its call of this model.
    """
    data: object = table
    call = sys._getframe()
    while call.f_back is not None:
        call = call.f_back
        if call.f_code.co_name == "predict" and isinstance(call.f_locals.get("self"), PyFuncModel):
            data, params = call.f_locals["data"], call.f_locals["params"] or {}
            break
    return [str(name) for name in data] if isinstance(data, pd.DataFrame | dict) else [], list(params)


def _require_known(kind: str, names: list[str], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"there is no {kind} {name!r}: this policy takes {', '.join(known)}")


def _is_served() -> bool:
    """Whether this process is MLflow's HTTP server, where several callers share the policy."""
    return os.environ.get("_MLFLOW_IS_IN_SERVING_ENVIRONMENT") == "true"


set_model(MlflowPolicy())
