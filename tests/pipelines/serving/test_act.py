"""POST /act: OpenVLA's and OpenVLA-OFT's clients, and our own form."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import urllib.request
from typing import Any

import numpy as np
import pytest

from pipelines.serving.limits import Limits
from pipelines.serving.service import ServiceConfig
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image
from tests.support.policy_clients import get, post
from tests.support.policy_server import RunningServer, running, untrained


def array(value: np.ndarray) -> dict[str, Any]:
    """As json-numpy writes it."""
    return {
        "__numpy__": base64.b64encode(value.tobytes()).decode(),
        "dtype": value.dtype.str,
        "shape": list(value.shape),
    }


def values(told: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(told["__numpy__"]), told["dtype"]).reshape(told["shape"])


def act(server: RunningServer, **fields: Any) -> tuple[int, Any]:
    return post(f"{server.address}/act", fields)


def test_every_client_gets_the_same_action_in_its_own_form(
    server: RunningServer, frames: list[bytes], text: str
) -> None:
    pixels, encoded = array(decode_image(frames[0])), base64.b64encode(frames[0]).decode()
    said = {"instruction": text, "stateless": True}
    status, named = act(server, image=encoded, **said)
    assert status == 200 and named["action_names"][1] == "world_vector_x" and named["units"]["world_vector_x"] == "m"
    assert named["frames_seen"] == 1 and len(named["tokens"][0]) == 11 and "rotation_delta_x" in named["absent"]
    by_name = dict(zip(named["action_names"], named["actions"][0], strict=True))
    motion = [by_name[f"{group}_{axis}"] for group in ("world_vector", "rotation_delta") for axis in "xyz"]
    expected = np.array([*motion, (1 - by_name["gripper_closedness_action"]) / 2], np.float32)  # 1: open
    openvla = act(server, image=pixels, **said)[1]
    np.testing.assert_allclose(values(openvla), expected, rtol=1e-6)
    (oft,) = act(server, full_image=pixels, **said)[1]
    np.testing.assert_array_equal(values(oft), values(openvla))
    double = act(server, encoded=json.dumps({"image": pixels, **said}))[1]
    np.testing.assert_array_equal(values(json.loads(double)), values(openvla))


def test_a_robot_has_a_history_by_its_name_or_by_its_address(
    server: RunningServer, frames: list[bytes], text: str
) -> None:
    said = {"image": base64.b64encode(frames[0]).decode(), "instruction": text}
    assert [act(server, robot="by-name", **said)[1]["frames_seen"] for _ in range(4)] == [1, 2, 3, 3]
    assert act(server, robot="by-name", reset=True, **said)[1]["frames_seen"] == 1
    by_address = [post(f"{server.address}/act?robot=by-address", said)[1]["frames_seen"] for _ in range(2)]
    assert by_address == [1, 2]
    status, refusal = act(server, **said)
    assert status == 400 and refusal["field"] == "robot"


def test_a_server_of_one_robot_needs_no_name(opened: EpisodeStore, frames: list[bytes], text: str) -> None:
    said = {"image": base64.b64encode(frames[0]).decode(), "instruction": text}
    with running(untrained(opened), ServiceConfig(limits=Limits(max_robots=1))) as server:
        assert [act(server, **said)[1]["frames_seen"] for _ in range(2)] == [1, 2]
        status, refusal = act(server, robot="another", **said)
        assert status == 503 and refusal["field"] == "robot" and "already serves 1 robots" in refusal["error"]


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({}, "image", "there is no camera frame: send one as image or"),
        ({"image": "AAAA"}, "image", "image cannot be decoded"),
        ({"image": {"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}}, "image", "dtype '|O' is not read"),
        ({"image": {"__numpy__": "AAAA", "dtype": "|u1", "shape": [-1]}}, "image", "shape [-1] must be"),
        ({"image": {"__numpy__": "AAAA", "dtype": "|u1", "shape": [9]}}, "image", "has 9 bytes, but 3 were sent"),
        ({"image": {"__numpy__": "no!", "dtype": "|u1", "shape": [3]}}, "image", "base64"),
        ({"image": array(np.zeros((4, 4), np.uint8))}, "image", "image must be PNG or JPEG"),
        ({"image": array(np.full((4, 4, 3), 2.0))}, "image", "floats that are not within 0 and 1"),
        ({"image": array(np.full((4, 4, 3), np.nan))}, "image", "floats that are not within 0 and 1"),
        ({"instruction": 7}, "instruction", "instruction must be text, got int"),
        ({"instruction": "sing"}, "instruction", "is not one of the 6"),
        ({"unnorm_key": "bridge_orig"}, "dataset", "is not in this contract"),
        ({"encoded": "{}"}, "encoded", "the only field"),
        ({"explain": 3}, "explain", "explain must be true or false"),
    ],
)
def test_an_error_names_the_field(
    server: RunningServer, frames: list[bytes], text: str, fields: dict[str, Any], field: str, words: str
) -> None:
    said = {"image": base64.b64encode(frames[0]).decode(), "instruction": text, "stateless": True} | fields
    status, refusal = act(server, **(said if fields else {"instruction": text}))
    assert status == 400 and refusal["field"] == field and words in refusal["error"], refusal


def test_the_server_says_what_it_serves_and_how_it_is(server: RunningServer) -> None:
    status, told = get(f"{server.address}/describe")
    contract = server.service.model.contract
    assert status == 200 and told["contract"] == contract.id and told["action_names"] == list(contract.action.names)
    assert told["control_hz"] == 10 and told["action_horizon"] == 1 and told["encoder"] == "hash-512"
    assert told["images"][0]["height"] == 96 and told["frames"] == 3 and "rotation_delta_x" in told["absent"]
    assert get(f"{server.address}/healthz") == (200, b"OK\n")
    assert get(f"{server.address}/health") == (200, {"status": "ok"})
    assert get(f"{server.address}/readyz") == (200, {"ready": True})
    assert b"rtp_requests_total" in get(f"{server.address}/metrics")[1]
    assert get(f"{server.address}/nothing")[0] == 404 and get(f"{server.address}/act")[0] == 405
    assert "POST /act and /invocations take frames" in str(get(f"{server.address}/nothing")[1])
    assert "it takes POST" in str(get(f"{server.address}/act")[1])


def test_the_page_runs_its_own_script_and_style_and_no_other(server: RunningServer) -> None:
    with urllib.request.urlopen(f"{server.address}/") as response:
        page, policy = response.read().decode(), response.headers["content-security-policy"]
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        content = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert content and f"{rule} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "http" not in page.partition("<body>")[2]


def test_a_server_whose_model_no_longer_answers_is_not_called_alive(opened: EpisodeStore) -> None:
    with running(untrained(opened)) as server:
        assert get(f"{server.address}/healthz")[0] == 200
        service = server.service
        for task in service._tasks:
            task.get_loop().call_soon_threadsafe(task.cancel)
        ends = time.monotonic() + 10
        while service.is_alive:
            assert time.monotonic() < ends
            time.sleep(0.02)
        assert get(f"{server.address}/healthz")[0] == 503
