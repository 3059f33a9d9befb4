"""MLflow's scoring format (POST /invocations): rows of columns in, rows of predictions out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.publishing.objects_meant import ObjectsMeant
from pipelines.publishing.robot_declaration import DECLARATIONS
from pipelines.serving.codecs.json_text import parsed
from pipelines.serving.question import Answer, Question
from pipelines.serving.refusal import Refusal
from pipelines.serving.request_format import COLUMNS, MAX_ROWS, PARAMETERS, is_column
from pipelines.serving.request_values import flag, is_missing
from rt_models.spec import MAIN_CAMERA, of_role

_FORMATS = ("dataframe_records", "dataframe_split", "instances", "inputs")
_LONGEST_NAME = 200
_EXAMPLE = '{"dataframe_records": [{"image": ..., "instruction": ...}]}'


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a request. `robot` is None where it names none."""

    robot: str | None
    question: Question


def read(body: bytes, *, num_frames: int, cameras: Sequence[str] = (MAIN_CAMERA,)) -> list[Row]:
    """The rows of a request; all are read before the first is answered. Raises Refusal with the reason.

    `num_frames` that the policy looks at: where it is more than one, a row must name its robot. `cameras` that it
    reads, by role.
    """
    request = parsed(body)
    if not isinstance(request, dict):
        raise Refusal(f"the request must be an object: {_EXAMPLE}")
    _require("field", request, (*_FORMATS, "params"))
    if sum(name in request for name in _FORMATS) != 1:
        raise Refusal(f"the request must hold one of {', '.join(_FORMATS)}: {_EXAMPLE}")
    params = _parameters(request.get("params"))
    table = _records(request)
    if len(table) > MAX_ROWS:
        raise Refusal(f"{len(table)} rows in one request: at most {MAX_ROWS} are answered, send several")
    for row in table:
        _require("column", [name for name in row if not is_column(name)], COLUMNS)
        if MAIN_CAMERA in cameras and "image" not in row:
            raise Refusal("Model is missing inputs ['image']: every row holds a camera frame", field="image")
    return [_row(number, row, params, num_frames) for number, row in enumerate(table)]


def turns(robots: Sequence[Hashable]) -> list[list[int]]:
    """The numbers of rows of these robots, in turns in which no robot has two: all first rows, all second, ..."""
    turns: list[list[int]] = []
    seen: Counter[Hashable] = Counter()
    for number, robot in enumerate(robots):
        turn = seen[robot]
        seen[robot] += 1
        turns += [[]] if turn == len(turns) else []
        turns[turn].append(number)
    return turns


def prediction(answer: Answer) -> Mapping[str, object]:
    """One row of the answer."""
    action = answer.action
    classes = {f"{dimension}_class": name for dimension, name in action.classes.items()}
    row = {**action.values, **classes, "absent": list(action.absent), "frames_seen": action.frames_seen}
    return row | ({"clipped": list(answer.clipped)} if answer.clipped else {})


def _require(kind: str, content: Iterable[str], known: Sequence[str]) -> None:
    for name in content:
        if name not in known:
            raise Refusal(f"there is no {kind} {name!r:.60}: this policy takes {', '.join(known)}", field=name[:60])


def _parameters(params: object) -> dict[str, Any]:
    params = {} if params is None else params
    if not isinstance(params, dict):
        raise Refusal(f'"params" must be an object such as {{"dataset": "NAME"}}, got {params!r:.60}', field="params")
    _require("parameter", params, PARAMETERS)
    for name, value in params.items():  # of the lists `require_declared` says what is wrong
        if name not in DECLARATIONS and value is not None and not isinstance(value, str):
            raise Refusal(f"{name} must be text, got {type(value).__name__}", field=name)
    return {name: params.get(name) or None for name in PARAMETERS}


def _records(request: Mapping[str, object]) -> list[dict[str, object]]:
    (name,) = [name for name in _FORMATS if name in request]
    content = request[name]
    if name == "dataframe_split":
        return _split(content)
    if name == "inputs" and isinstance(content, dict):
        return _of_columns(content)
    rows = [content] if isinstance(content, dict) else content
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise Refusal(f"{name} must be a list of rows: {_EXAMPLE}", field=name)
    return rows


def _split(content: object) -> list[dict[str, object]]:
    table = content if isinstance(content, dict) else {}
    columns, data = table.get("columns"), table.get("data")
    if not isinstance(columns, list) or not isinstance(data, list) or not data:
        raise Refusal("dataframe_split must hold columns and data, both lists", field="dataframe_split")
    if not all(isinstance(name, str) for name in columns):
        raise Refusal("the columns of dataframe_split must be names", field="dataframe_split")
    if not all(isinstance(row, list) and len(row) == len(columns) for row in data):
        raise Refusal(f"every row of dataframe_split must hold {len(columns)} values", field="dataframe_split")
    return [dict(zip(columns, row, strict=True)) for row in data]


def _of_columns(content: Mapping[str, object]) -> list[dict[str, object]]:
    """`inputs` as a map: of one row, or of columns of equal length."""
    lists = [value for name, value in content.items() if isinstance(value, list) and name in ("instruction", "robot")]
    if not lists:
        return [dict(content)]
    if any(not isinstance(value, list) or len(value) != len(lists[0]) for value in content.values()):
        raise Refusal("the columns of inputs must be lists of equal length", field="inputs")
    return [{name: value[place] for name, value in content.items()} for place in range(len(lists[0]))]  # type: ignore[index]


def _row(number: int, row: Mapping[str, object], params: Mapping[str, Any], num_frames: int) -> Row:
    try:
        robot = robot_name(row.get("robot"))
        question = Question(
            camera=lambda role, _: row.get(of_role("image", role)),
            state=row.get("state"),
            control_hz=rate_of(params["control_hz"]),
            declared={name: params[name] for name in DECLARATIONS if params[name] is not None},
            instruction=_text(row.get("instruction")),
            embedding=row.get("embedding"),
            objects=ObjectsMeant.of(row.get),
            reset=flag("reset", row.get("reset")),
            stateless=flag("stateless", row.get("stateless")),
            dataset=params["dataset"],
            contract=params["contract"],
        )
        require_history(robot, question, num_frames)
    except ValueError as error:
        raise Refusal(f"row {number}: {error}", field=getattr(error, "field", "")) from None
    return Row(robot=robot, question=question)


def _text(value: object) -> str | None:
    if is_missing(value):
        return None
    if not isinstance(value, str):
        raise Refusal(f"instruction must be text, got {type(value).__name__}", field="instruction")
    return value


def rate_of(value: object) -> float | None:
    """Steps a second, where a robot says how often it acts. Raises Refusal for what is no number."""
    if is_missing(value) or value == "":
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise Refusal(f"control_hz must be a number of steps a second, got {value!r:.60}", field="control_hz") from None


def robot_name(value: object) -> str | None:
    """The name of the robot that a request continues, or None. Raises Refusal for what is no name, or too long."""
    if is_missing(value) or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Refusal(f"robot must be text, got {type(value).__name__}", field="robot")
    name = str(value)
    if len(name) > _LONGEST_NAME:
        raise Refusal(f"robot has {len(name)} letters, at most {_LONGEST_NAME} are read", field="robot")
    return name


def require_history(robot: str | None, question: Question, num_frames: int) -> None:
    """Raise Refusal where it is not said whose frames went before."""
    if question.stateless and robot is not None:
        raise Refusal(
            f"stateless is an answer without a history, and robot {robot!r} has one: give one", field="stateless"
        )
    if robot is None and not question.stateless and num_frames > 1:
        raise Refusal(
            f"this policy looks at the last {num_frames} frames of a robot, and the row names none: add "
            f'"robot": "arm-1" to continue the episode of that robot, or "stateless": true for an answer to this frame '
            f"alone",
            field="robot",
        )
