"""MLflow's scoring format: what is answered, what is refused before it is read, and in which words."""

from __future__ import annotations

import base64
import http.client
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.publishing.folder import read_bundle, write_bundle
from pipelines.publishing.inference import InferenceModel
from pipelines.publishing.instructions import Instructions
from pipelines.serving.limits import Limits
from pipelines.serving.request_format import MAX_ROWS, ServedPolicy
from pipelines.serving.service import ServiceConfig
from preprocessing.store.episode_store import EpisodeStore
from tests.support.command_line import REPOSITORY
from tests.support.policy_clients import post
from tests.support.policy_server import RunningServer, running, untrained


def ask(server: RunningServer, body: Any, **options: Any) -> tuple[int, Any]:
    return post(f"{server.address}/invocations", body, **options)


def words_of(server: RunningServer) -> list[str]:
    return shlex.split(ServedPolicy.of(server.service.model).curl(server.address))


def test_the_curl_line_is_answered_as_it_stands(server: RunningServer) -> None:
    words = words_of(server)
    assert words[:2] == ["curl", f"{server.address}/invocations"]
    assert words[2:4] == ["-H", "Content-Type: application/json"]
    status, answer = ask(server, json.loads(words[5]))
    (row,) = answer["predictions"]
    assert status == 200 and row["frames_seen"] == 1 and row["terminate_episode_class"] in ("terminate", "arm", "base")
    assert ask(server, json.loads(words[5]))[1]["predictions"][0]["frames_seen"] == 2


def test_the_curl_line_of_the_readme_is_answered(server: RunningServer) -> None:
    readme = (REPOSITORY / "README.md").read_text()
    (block,) = [block for block in readme.split("```sh\n") if block.startswith("curl ")]
    words = shlex.split(block.partition("```")[0])
    status, answer = ask(server, json.loads(words[words.index("-d") + 1]))
    assert status == 200 and len(answer["predictions"]) == 1, answer


def test_of_several_datasets_the_line_names_one_and_says_so(opened: EpisodeStore) -> None:
    trained = untrained(opened)
    (side,) = trained.contract.datasets
    both = replace(trained.contract, datasets=(side, replace(side, name="other")))
    served = ServedPolicy.of(InferenceModel(replace(trained, contract=both)))
    assert served.request()["params"] == {"dataset": "metaworld_sample"}
    assert "dataset must be one of metaworld_sample, other." in served.description()


def test_every_form_of_mlflow_s_request_is_answered_alike(
    server: RunningServer, frames: list[bytes], text: str
) -> None:
    image = base64.b64encode(frames[0]).decode()
    row = {"image": image, "instruction": text, "stateless": True}
    forms: list[dict[str, Any]] = [
        {"dataframe_records": [row]},
        {"dataframe_split": {"columns": list(row), "data": [list(row.values())]}},
        {"instances": [row]},
        {"inputs": row},
        {"inputs": {name: [value] for name, value in row.items()}},
    ]
    answers = [ask(server, form) for form in forms]
    assert {status for status, _ in answers} == {200} and all(answer == answers[0][1] for _, answer in answers)


def test_rows_of_one_request_are_answered_in_the_order_of_their_robots(
    server: RunningServer, frames: list[bytes], text: str
) -> None:
    rows = [
        {"image": base64.b64encode(frame).decode(), "instruction": text, "robot": f"turns-{robot}"}
        for frame in frames[:3]
        for robot in "ab"
    ]
    answer = ask(server, {"dataframe_records": rows})[1]["predictions"]
    assert [row["frames_seen"] for row in answer] == [1, 1, 2, 2, 3, 3]


def test_a_row_that_is_wrong_leaves_every_history_as_it_was(
    server: RunningServer, frames: list[bytes], text: str
) -> None:
    rows = [{"image": base64.b64encode(frame).decode(), "instruction": text, "robot": "whole"} for frame in frames[:2]]
    status, answer = ask(server, {"dataframe_records": [rows[0], rows[1] | {"image": "AAAA"}]})
    assert status == 400 and answer["message"].startswith("row 1: image cannot be decoded")
    assert answer["field"] == "image"
    assert ask(server, {"dataframe_records": rows[:1]})[1]["predictions"][0]["frames_seen"] == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"params": {"unnorm_key": "a"}}, "there is no parameter 'unnorm_key': this policy takes dataset, contract"),
        ({"params": {"dataset": "a"}}, "row 0: dataset 'a' is not in this contract: name one of metaworld_sample"),
        ({"params": {"contract": "a"}}, "row 0: contract a was asked for, this policy has"),
        ({"params": {"dataset": 7}}, "dataset must be text, got int"),
        ({"params": [1]}, '"params" must be an object'),
        ({"dataset": "metaworld_sample"}, "there is no field 'dataset': this policy takes dataframe_records"),
        ({"row": {"robot_id": "a"}}, "there is no column 'robot_id': this policy takes image, instruction"),
        ({"row": {"image": "no base64!"}}, "row 0: image is a text that is not base64"),
        ({"row": {"image": [[[0] * 3] * 4] * 4, "instruction": "sing"}}, "row 0: instruction 'sing' is not one of"),
        ({"row": {"robot": None}}, "row 0: this policy looks at the last 3 frames of a robot, and the row names none"),
        ({"row": {"robot": "r" * 300}}, "row 0: robot has 300 letters, at most 200 are read"),
        ({"row": {"stateless": True}}, "row 0: stateless is an answer without a history"),
        ({"row": {"reset": "yes"}}, "row 0: reset must be true or false"),
        ({"row": {"instruction": "w" * 2000}}, "row 0: the instruction has 2000 letters, at most 1000 are read"),
        ({"row": {"instruction": ["press it"]}}, "row 0: instruction must be text, got list"),
        ({"row": {"instruction": 7}}, "row 0: instruction must be text, got int"),
        ({"row": {"robot": ["arm-1"]}}, "row 0: robot must be text, got list"),
        ({"row": {"robot": ""}}, "row 0: this policy looks at the last 3 frames of a robot, and the row names none"),
        (
            {"row": {"instruction": None, "embedding": [1, 2]}},
            "row 0: embedding must be 512 finite numbers, got int64",
        ),
        (
            {"row": {"embedding": [0.0] * 512}},
            "row 0: an instruction came as text and as embedding: send one",
        ),
        ({"count": MAX_ROWS + 1}, f"{MAX_ROWS + 1} rows in one request: at most {MAX_ROWS} are answered"),
    ],
)
def test_a_refusal_is_its_reason_alone(server: RunningServer, change: dict[str, Any], reason: str) -> None:
    more = {key: value for key, value in change.items() if key not in ("row", "count")}
    (row,) = json.loads(words_of(server)[5])["dataframe_records"]
    rows = [{**row, **change.get("row", {})}] * change.get("count", 1)
    status, answer = ask(server, {"dataframe_records": rows} | more)
    assert status == 400 and answer["message"].startswith(reason), answer
    assert "stack_trace" not in answer and "\n" not in answer["message"]


@pytest.mark.parametrize(
    ("body", "content_type", "status", "reason"),
    [
        (b"{", "application/json", 400, "the request is not JSON"),
        (b"[" * 100_000, "application/json", 400, "the request is not JSON"),
        (b"[]", "application/json", 400, "the request must be an object"),
        (b"{}", "text/html", 415, "the request has the Content-Type 'text/html': send"),
        (b"image,instruction\nx,y\n", "text/csv", 415, "the request has the Content-Type 'text/csv': send"),
        (b"{}", "application/json; charset=utf-8", 400, "the request must hold one of dataframe_records, "),
        (b'{"inputs": {}, "instances": []}', "application/json", 400, "the request must hold one of "),
        (b'{"instances": []}', "application/json", 400, "instances must be a list of rows"),
        (b'{"dataframe_split": 7}', "application/json", 400, "dataframe_split must hold columns and data"),
        (b'{"dataframe_records": [{"instruction": "a"}]}', "application/json", 400, "Model is missing inputs"),
    ],
)
def test_what_is_no_request_is_refused(
    server: RunningServer, body: bytes, content_type: str, status: int, reason: str
) -> None:
    answered, answer = ask(server, body, content_type=content_type)
    assert answered == status and answer["message"].startswith(reason), answer


def test_a_request_that_is_too_large_is_not_read_to_its_end(opened: EpisodeStore) -> None:
    config = ServiceConfig(limits=Limits(max_message_mib=1))
    with running(untrained(opened), config) as server:
        caller = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=30)
        caller.putrequest("POST", "/invocations")
        caller.putheader("Content-Type", "application/json")
        caller.putheader("Content-Length", str(2**20 + 1))
        caller.endheaders(b"{")  # the rest never comes
        answer = caller.getresponse()
        assert answer.status == 413 and "larger than 1048576 bytes" in json.loads(answer.read())["message"]
        caller.close()
        assert ask(server, json.loads(words_of(server)[5]))[0] == 200


def test_a_registered_bundle_still_opens_without_a_table(opened: EpisodeStore, tmp_path: Path) -> None:
    trained = untrained(opened)
    write_bundle(replace(trained, instructions=Instructions(trained.contract.encoder, {})), tmp_path)
    assert read_bundle(str(tmp_path)).instructions.vectors == {}


def test_the_request_format_and_the_dimensions_fit_into_80_columns(server: RunningServer) -> None:
    lines = ServedPolicy.of(server.service.model).description().splitlines()
    assert [line for line in lines if len(line) > 80 and not line.startswith("curl")] == []


def test_what_is_sent_in_a_wrong_field_is_not_sent_back_whole(server: RunningServer, frames: list[bytes]) -> None:
    """A picture in the place of a flag or a name would be in the log, too."""
    (row,) = json.loads(words_of(server)[5])["dataframe_records"]
    picture = base64.b64encode(frames[0]).decode()
    for change in ({"reset": picture}, {"robot": picture}):
        status, answer = ask(server, {"dataframe_records": [row | change]})
        assert status == 400 and len(answer["message"]) < 300, change
    for params in ({"contract": picture}, {"dataset": picture}):
        status, answer = ask(server, {"dataframe_records": [row], "params": params})
        assert status == 400 and len(answer["message"]) < 300, params


def test_rows_without_a_name_follow_each_other_where_there_is_one_robot(opened: EpisodeStore) -> None:
    with running(untrained(opened), ServiceConfig(limits=Limits(max_robots=1))) as server:
        (row,) = json.loads(words_of(server)[5])["dataframe_records"]
        del row["robot"]
        status, answer = ask(server, {"dataframe_records": [row] * 3})
        assert status == 200, answer
        assert [row["frames_seen"] for row in answer["predictions"]] == [1, 2, 3]


def test_a_policy_of_one_frame_answers_rows_and_robots_without_a_name(opened: EpisodeStore) -> None:
    """They have no history to share, so none takes the place of another."""
    with running(untrained(opened, "rt2_tiny")) as server:
        (row,) = json.loads(words_of(server)[5])["dataframe_records"]
        del row["robot"]
        status, answer = ask(server, {"dataframe_records": [row] * 3})
        assert status == 200 and len(answer["predictions"]) == 3, answer
        assert len(server.service.sessions) == 0
