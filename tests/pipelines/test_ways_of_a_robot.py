"""Every public way into a policy answers a robot that sends what it reads, and names what is wrong of another."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.inference import InferenceModel
from pipelines.publishing.mlflow_model import mlflow_model
from pipelines.publishing.policy import LoadedPolicy
from pipelines.serving.client import PolicyClient
from pipelines.serving.run import Listening
from pipelines.serving.start_up import announcement
from preprocessing.store.images import decode_image
from rt_models.spec import StateInput
from tests.support import two_cameras
from tests.support.policy_clients import HarnessRobot, OpenpiRobot, post
from tests.support.policy_server import RunningServer, running, untrained

TEXT = "lift it"
STATE = tuple(f"state/{name}" for name in two_cameras.STATE)
UNITS = ("m", "m", "m", "openness")


@dataclass(frozen=True, kw_only=True)
class Robot:
    """What a robot sends: JPEG frames by role, its state, and what it says of itself."""

    frames: Mapping[str, bytes]
    state: Any = None
    told: Mapping[str, Any]

    def fields(self, **names: str) -> dict[str, Any]:
        """Frames under `names`, by role, and the state."""
        fields: dict[str, Any] = {names[role]: frame for role, frame in self.frames.items()}
        return fields | ({} if self.state is None else {"state": self.state})


@dataclass(frozen=True, kw_only=True)
class Served:
    """A policy behind every way: loaded, on a server, and as an MLflow model."""

    trained: TrainedModel
    server: RunningServer
    pyfunc: Any


def in_python(served: Served, robot: Robot) -> Any:
    declared = {name: value for name, value in robot.told.items() if name != "control_hz"}
    policy = LoadedPolicy(InferenceModel(served.trained), None, robot.told.get("control_hz"), "refuse", declared)
    return policy.act(dict(robot.frames), TEXT, robot.state).values["world_vector_x"]


def by_our_client(served: Served, robot: Robot) -> Any:
    fields = robot.fields(image="image", wrist="image_wrist")
    with PolicyClient(served.server.websocket, reconnect_s=0) as client:
        return client.infer({**fields, "prompt": TEXT, **robot.told})["actions"][0][1]


def by_openpis_client(served: Served, robot: Robot) -> Any:
    fields = robot.fields(image="observation/image", wrist="observation/wrist_image")
    fields |= {name: decode_image(value) for name, value in fields.items() if isinstance(value, bytes)}
    fields |= {"observation/state": fields.pop("state")} if "state" in fields else {}
    with OpenpiRobot(served.server.websocket) as client:
        return client.infer({**fields, "prompt": TEXT, **robot.told})["actions"][0][1]


def by_vla_eval(served: Served, robot: Robot) -> Any:
    images = {name: frame for name, frame in robot.fields(image="primary", wrist="wrist").items() if name != "state"}
    state = {} if robot.state is None else {"state": robot.state}
    with HarnessRobot(served.server.address.replace("http", "ws", 1) + "/vla") as client:
        answer = client.ask("observation", {"images": images, "task_description": TEXT, **state, **robot.told})
    if answer["type"] == "error":
        raise ValueError(answer["payload"]["error"])
    return answer["payload"]["actions"][0]


def by_act(served: Served, robot: Robot) -> Any:
    fields = in_base64(robot.fields(image="image", wrist="image_wrist"))
    status, answer = post(
        f"{served.server.address}/act", {**fields, "instruction": TEXT, "stateless": True, **robot.told}
    )
    if status != 200:
        raise ValueError(answer["error"])
    return answer["actions"][0][1]


def by_invocations(served: Served, robot: Robot) -> Any:
    row = in_base64(robot.fields(image="image", wrist="image_wrist")) | {"instruction": TEXT, "stateless": True}
    body = {"dataframe_records": [row], "params": as_parameters(robot)}
    status, answer = post(f"{served.server.address}/invocations", body)
    if status != 200:
        raise ValueError(answer["message"])
    return answer["predictions"][0]["world_vector_x"]


def by_mlflow(served: Served, robot: Robot) -> Any:
    row = robot.fields(image="image", wrist="image_wrist") | {"instruction": TEXT, "stateless": True}
    return served.pyfunc.predict(pd.DataFrame([row]), params=as_parameters(robot))["world_vector_x"][0]


def as_parameters(robot: Robot) -> dict[str, Any]:
    return {name: str(value) if name == "control_hz" else value for name, value in robot.told.items()}


def in_base64(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value for name, value in fields.items()
    }


Way = Callable[[Served, Robot], Any]
WAYS: tuple[Way, ...] = (
    in_python,
    by_our_client,
    by_openpis_client,
    by_vla_eval,
    by_act,
    by_invocations,
    by_mlflow,
)


def served_with(folder: Path, **changes: Any) -> Iterator[tuple[Served, Robot]]:
    """A policy with these settings on every way, and a robot that sends what it reads."""
    store = two_cameras.store(folder / "two")
    trained = untrained(store, **changes)
    mlflow.pyfunc.save_model(folder / "mlflow", **mlflow_model(trained, folder))
    row = store.read_episode(0, 0, ["image", "image_hand", "proprio"]).slice(0, 1).to_pylist()[0]
    frames = {"image": row["image"], "wrist": row["image_hand"]}
    robot = Robot(
        frames={role: frames[role] for role in changes["cameras"]},
        state=dict(zip(STATE, row["proprio"], strict=True)) if "state" in changes else None,
        told={"control_hz": 5.0},
    )
    with running(trained) as server:
        yield Served(trained=trained, server=server, pyfunc=mlflow.pyfunc.load_model(str(folder / "mlflow"))), robot


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Robot]]:
    yield from served_with(tmp_path_factory.mktemp("both"), cameras=("image", "wrist"), state=StateInput())


@pytest.fixture(scope="module")
def wrist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Robot]]:
    yield from served_with(tmp_path_factory.mktemp("wrist"), cameras=("wrist",))


NAMES = [f"world_vector_{axis}" for axis in "xyz"]


def wrong_robots(served: Served, robot: Robot) -> dict[str, tuple[Robot, str]]:
    """By what is wrong, the robot and what the refusal must name."""
    space, side = served.trained.contract.datasets[0].acted(served.trained.contract.action)
    names, units, state = list(space.names), list(side.units), dict(robot.state)
    swapped = [names[0], names[2], names[1], *names[3:]]

    def telling(**told: Any) -> Robot:
        return replace(robot, told={**robot.told, **told})

    def feeling(changed: Any) -> Robot:
        return replace(robot, state=changed)

    def without(role: str) -> Robot:
        return replace(robot, frames={other: frame for other, frame in robot.frames.items() if other != role})

    return {
        "order": (telling(action_names=swapped), "world_vector_y at place 1, where the policy has world_vector_x"),
        "unit": (telling(action_units=[units[0], "mm", *units[2:]]), "world_vector_x is in mm on the robot and in m"),
        "rate": (telling(control_hz=10.0), "acts 10 times a second, and the policy learned from two_cameras at 5 Hz"),
        "no rate": (telling(control_hz=-1.0), "control_hz must be a number of steps a second above 0"),
        "order of the state": (telling(state_names=list(reversed(STATE))), "state/opening at place 0"),
        "unit of the state": (telling(state_units=["m", "m", "cm", "openness"]), "state/z is in cm on the robot"),
        "another state": (telling(state_names=[*STATE[:3], "state/effort"]), "has state/effort, where the policy has"),
        "camera": (without("wrist"), "camera wrist is missing|image_wrist"),
        "main camera": (without("image"), "camera image is missing|no camera frame: send one as|inputs .'image'"),
        "state": (feeling(None), r"state: it is missing|inputs .'state'"),
        "part of the state": (feeling({name: state[name] for name in STATE[1:]}), "state lacks state/x"),
        "more state": (feeling({**state, "elbow": 1.0}), "state has elbow, which is not read"),
        "shape of the state": (feeling([0.0] * 3), r"state has the shape \(3,\)"),
        "not finite": (feeling([0.0, 0.0, float("nan"), 0.0]), "state state/z is not finite"),
        "text": (feeling(["a", "b", "c", "d"]), "state must be numbers"),
    }


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_wrong_robot_is_refused_by_the_name_of_what_is_wrong(way: Way, both: tuple[Served, Robot]) -> None:
    served, robot = both
    expected = in_python(served, robot)
    if way is not by_vla_eval:  # its seven numbers are those of another convention
        assert way(served, robot) == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(way(served, replace(robot, state=list(robot.state.values()))))
    for wrong, words in wrong_robots(served, robot).values():
        with pytest.raises((ValueError, RuntimeError, mlflow.MlflowException), match=words):
            way(served, wrong)
    assert np.isfinite(way(served, robot))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_policy_of_the_wrist_alone_wants_no_other_picture(way: Way, wrist: tuple[Served, Robot]) -> None:
    served, robot = wrist
    if way is not by_vla_eval:
        assert way(served, robot) == pytest.approx(in_python(served, robot), rel=1e-5)
    assert np.isfinite(way(served, robot))
    main = replace(robot, frames={"image": robot.frames["wrist"]})
    with pytest.raises((ValueError, RuntimeError, mlflow.MlflowException), match=r"camera wrist is missing|_wrist"):
        way(served, main)


def test_what_a_server_says_of_the_wrist_alone_can_be_sent(
    wrist: tuple[Served, Robot], capsys: pytest.CaptureFixture[str]
) -> None:
    served, _ = wrist
    with OpenpiRobot(served.server.websocket) as client:
        assert [(image["camera"], image["height"]) for image in client.metadata["images"]] == [("wrist", 8)]
        assert "image_wrist" in client.metadata["images"][0]["keys"]
    with HarnessRobot(served.server.websocket + "/vla") as client:
        assert set(client.ask("hello", {})["payload"]["observation_spec"]) == {"wrist", "language"}
    told = announcement(served.server.frontend, Listening(), "runs/first")
    assert "frames of 8x8 of camera wrist;" in told
    assert 'policy.infer({"image_wrist": frame_wrist, "prompt":' in told
    assert "frame_wrist = np.full((8, 8, 3), 128, np.uint8)" in told and '"image": ' not in told
