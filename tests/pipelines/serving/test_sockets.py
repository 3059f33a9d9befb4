"""The websockets: openpi's protocol and the vla-eval harness's, message by message."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus

from pipelines.publishing.inference import named
from pipelines.serving.access import Access
from pipelines.serving.limits import Limits
from pipelines.serving.service import ServiceConfig
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image
from tests.support.policy_clients import HarnessRobot, OpenpiRobot, get, post
from tests.support.policy_server import RunningServer, running, untrained


def test_the_server_speaks_first_and_says_what_its_answers_mean(server: RunningServer) -> None:
    with OpenpiRobot(server.websocket) as robot:
        contract = server.service.model.contract
        assert robot.metadata["contract"] == contract.id
        assert robot.metadata["action_names"] == list(contract.action.names)
        assert robot.metadata["units"]["world_vector_x"] == "m" and robot.metadata["action_horizon"] == 1


def test_an_answer_is_the_policy_s_own_and_horizon_first(
    server: RunningServer, opened: EpisodeStore, frames: list[bytes], text: str
) -> None:
    model, dataset = server.service.model, server.service.model.contract.datasets[0]
    policy = model.episode(dataset)
    with OpenpiRobot(server.websocket) as robot:
        for number, frame in enumerate(frames[:4]):
            answer = robot.infer({"observation/image": decode_image(frame), "prompt": text})
            (acted,) = model.act([policy], [model.frame(frame)], [model.instruction(text)])
            np.testing.assert_array_equal(answer["tokens"], acted.tokens[None])
            expected = list(named(acted, model.contract, dataset).values.values())
            np.testing.assert_array_equal(answer["actions"], np.array([expected], np.float32))
            assert answer["actions"].dtype == np.float32 and answer["frames_seen"] == min(number + 1, 3)
            assert answer["policy_timing"]["infer_ms"] > 0 and answer["server_timing"]["infer_ms"] > 0
            assert ("prev_total_ms" in answer["server_timing"]) == (number > 0)
            arrays = [value for value in answer.values() if isinstance(value, np.ndarray)]
            assert all(len(value) == 1 for value in arrays)


def test_an_episode_begins_with_a_connection_an_instruction_or_a_reset(
    server: RunningServer, opened: EpisodeStore, frames: list[bytes]
) -> None:
    image, (one, other) = decode_image(frames[0]), opened.instruction_texts[:2]
    asked: list[dict[str, Any]] = [{"prompt": one}, {"prompt": one}, {"prompt": other}, {"prompt": other}]
    asked += [{"prompt": other, "reset": True}, {"prompt": other, "stateless": True}, {"prompt": other}]
    with OpenpiRobot(server.websocket) as robot:
        seen = [robot.infer({"image": image, **fields})["frames_seen"] for fields in asked]
    assert seen == [1, 2, 1, 2, 1, 1, 2]
    with OpenpiRobot(server.websocket) as robot:
        assert robot.infer({"image": image, "prompt": other})["frames_seen"] == 1


@pytest.mark.parametrize(
    ("key", "image"),
    [
        ("image", lambda pixels, jpeg: pixels.transpose(2, 0, 1)),
        ("observation/exterior_image_1_left", lambda pixels, jpeg: pixels),
        ("images", lambda pixels, jpeg: {"cam_high": pixels.transpose(2, 0, 1), "cam_low": pixels}),
        ("images", lambda pixels, jpeg: {"whatever": pixels}),
        ("image", lambda pixels, jpeg: jpeg),
        ("image", lambda pixels, jpeg: (pixels / 255 + 1e-4).clip(0, 1).astype(np.float32)),
    ],
)
def test_pictures_are_taken_as_clients_send_them(
    server: RunningServer, frames: list[bytes], text: str, key: str, image: Any
) -> None:
    pixels = decode_image(frames[0])
    with OpenpiRobot(server.websocket) as robot:
        plain = robot.infer({"image": pixels, "prompt": text, "stateless": True})
        answer = robot.infer({key: image(pixels, frames[0]), "prompt": text, "stateless": True})
    np.testing.assert_array_equal(answer["tokens"], plain["tokens"])


def test_an_error_names_the_field_and_the_connection_stays(
    server: RunningServer, frames: list[bytes], text: str
) -> None:
    image = decode_image(frames[0])
    hostile = {b"__ndarray__": True, b"data": b"\1" * 8, b"dtype": "|O", b"shape": [1]}
    with OpenpiRobot(server.websocket) as robot:
        assert robot.infer({"image": image, "prompt": text})["frames_seen"] == 1
        for fields, words in (
            ({"prompt": text}, '"field": "image"'),
            ({"image": image}, '"field": "prompt"'),
            ({"image": image, "prompt": "sing"}, '"field": "instruction"'),
            ({"image": hostile, "prompt": text}, "image: dtype '|O' is not read"),
            ({"state": {"inner": [hostile]}, "image": image, "prompt": text}, '"field": "state.inner[0]"'),
            ({"image": image, "prompt": text, "dataset": "a"}, '"field": "dataset"'),
        ):
            with pytest.raises(RuntimeError) as caught:
                robot.infer(fields)
            assert words in str(caught.value), fields
        for message in ("text", b"", b"\xc1", b"\x93\x01\x02\x03"):
            with pytest.raises(RuntimeError):
                robot.exchange(message)
        assert robot.infer({"image": image, "prompt": text})["frames_seen"] == 2


def test_the_harness_gets_seven_numbers_and_its_own_specs(
    server: RunningServer, frames: list[bytes], text: str
) -> None:
    image = {"__image__": True, "format": "jpeg", "data": frames[0], "shape": [96, 96, 3]}
    seen = {"images": {"primary": image}, "task_description": text}
    with HarnessRobot(f"{server.websocket}/vla") as robot:
        hello = robot.ask("hello", {"harness_version": "0.8.0", "protocol_version": 1, "benchmark": "x"})
        assert (hello["type"], hello["seq"], hello["payload"]["protocol_version"]) == ("hello", 1, 1)
        assert hello["payload"]["action_spec"]["gripper"]["format"] == "binary_close_positive"
        robot.send("episode_start", {"task": {"name": "a"}})
        first, second = robot.ask("observation", seen), robot.ask("observation", seen)
        assert (first["type"], first["seq"], second["seq"]) == ("action", 3, 4)
        assert first["payload"]["actions"].shape == (7,) and abs(first["payload"]["actions"][6]) == 1
        assert [answer["payload"]["frames_seen"] for answer in (first, second)] == [1, 2]
        robot.send("episode_end", {"metrics": {}})
        robot.send("episode_start", {"task": {"name": "a"}})
        assert robot.ask("observation", seen)["payload"]["frames_seen"] == 1
        error = robot.ask("observation", {"images": {}, "task_description": text})
        assert error["type"] == "error" and error["seq"] == 8 and error["payload"]["field"] == "image"
        assert robot.ask("sing", {})["payload"]["field"] == "type"
        assert robot.ask("observation", seen)["payload"]["frames_seen"] == 2


def test_a_server_with_a_token_answers_those_who_know_it(opened: EpisodeStore, frames: list[bytes], text: str) -> None:
    with running(untrained(opened), access=Access(token="secret")) as server:
        assert get(f"{server.address}/healthz")[0] == 200
        for url in ("/describe", "/metrics", "/robots"):
            assert get(f"{server.address}{url}")[0] == 401
            assert get(f"{server.address}{url}", {"Authorization": "Bearer secret"})[0] == 200
        assert post(f"{server.address}/act", {}, headers={"Authorization": "Bearer wrong"})[0] == 401
        with pytest.raises(InvalidStatus) as refused:
            OpenpiRobot(server.websocket)
        assert refused.value.response.status_code == 401
        with OpenpiRobot(server.websocket, additional_headers={"Authorization": "Api-Key secret"}) as robot:
            assert robot.infer({"image": decode_image(frames[0]), "prompt": text})["frames_seen"] == 1


def test_pages_of_other_sites_are_kept_out(server: RunningServer) -> None:
    with pytest.raises(InvalidStatus) as refused:
        OpenpiRobot(server.websocket, origin="http://elsewhere.example")
    assert refused.value.response.status_code == 403
    assert get(f"{server.address}/describe", {"Origin": "http://elsewhere.example"})[0] == 403
    with OpenpiRobot(server.websocket, origin=server.address):
        pass


def test_places_are_limited_and_given_back(opened: EpisodeStore) -> None:
    with running(untrained(opened), ServiceConfig(limits=Limits(max_robots=1))) as server:
        with OpenpiRobot(server.websocket):
            with pytest.raises(InvalidStatus) as refused:
                OpenpiRobot(server.websocket)
            assert refused.value.response.status_code == 503
        ends = time.monotonic() + 10
        while len(server.service.sessions):
            assert time.monotonic() < ends
            time.sleep(0.02)
        with OpenpiRobot(server.websocket):
            pass


def test_of_several_cameras_the_refusal_names_each(server: RunningServer, text: str) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    told = r"there is images\.left, images\.right, prompt"
    with OpenpiRobot(server.websocket) as robot, pytest.raises(RuntimeError, match=told):
        robot.infer({"images": {"left": image, "right": image}, "prompt": text})


def test_a_vector_that_is_none_is_blamed_itself(server: RunningServer) -> None:
    with OpenpiRobot(server.websocket) as robot, pytest.raises(RuntimeError, match='"field": "embedding"'):
        robot.infer({"image": np.zeros((8, 8, 3), np.uint8), "embedding": np.full(512, np.nan, np.float32)})


def test_answers_and_refusals_carry_the_id_of_their_request(
    server: RunningServer, frames: list[bytes], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rtp.serve")
    seen = {"image": frames[0], "prompt": text}
    with OpenpiRobot(server.websocket) as robot:
        assert robot.infer(seen | {"request_id": "mine-1"})["request_id"] == "mine-1"
        made = [robot.infer(seen | {"request_id": bad})["request_id"] for bad in ("x" * 65, 7, "a\nb")]
        assert len(set(made)) == 3 and all(len(each) == 16 for each in made)
        with pytest.raises(RuntimeError, match='"request_id": "mine-2"'):
            robot.infer({"prompt": text, "request_id": "mine-2"})
    with HarnessRobot(f"{server.websocket}/vla") as harness:
        observation = {"images": {"primary": frames[0]}, "task_description": text, "request_id": "mine-3"}
        assert harness.ask("observation", observation)["payload"]["request_id"] == "mine-3"
        refused = harness.ask("observation", {"task_description": text, "request_id": "mine-4"})
        assert refused["type"] == "error" and refused["payload"]["request_id"] == "mine-4"
    named = [record.request for record in caplog.records if record.getMessage() in ("answered", "refused")]  # type: ignore[attr-defined]
    assert {"mine-2", "mine-4"} <= set(named)


def test_an_instruction_comes_as_text_or_as_embedding(server: RunningServer, frames: list[bytes], text: str) -> None:
    embedding = server.service.model.instructions.vectors[text]
    with OpenpiRobot(server.websocket) as robot:
        assert robot.infer({"image": frames[0], "prompt": "", "embedding": embedding})["frames_seen"] == 1
        with pytest.raises(RuntimeError, match="as text and as embedding"):
            robot.infer({"image": frames[0], "prompt": text, "embedding": embedding})


def test_a_model_that_was_trained_with_plans_says_one(opened: EpisodeStore, frames: list[bytes], text: str) -> None:
    trained = untrained(opened, "rt2_tiny")
    planned = replace(trained, origin=replace(trained.origin, document={"plans": "0123"}))
    seen = {"image": frames[0], "prompt": text}
    for model, config, says in (
        (planned, ServiceConfig(plan_tokens=8), True),
        (planned, ServiceConfig(), False),
        (trained, ServiceConfig(plan_tokens=8), False),
    ):
        with running(model, config) as server, OpenpiRobot(server.websocket) as robot:
            answer = robot.infer(seen)
            assert (isinstance(answer.get("plan"), str), robot.metadata["plan_tokens"] > 0) == (says, says)
            assert answer["tokens"].shape == (1, 11)
