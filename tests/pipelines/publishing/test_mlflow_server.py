"""The HTTP side of a served policy: what is refused before it is read, and in which words errors come back."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel

from pipelines.catalogue import load_recipe
from pipelines.publishing import mlflow_server as policy_server
from pipelines.publishing.folder import TrainedModel, read_bundle, write_bundle
from pipelines.publishing.inference import InferenceModel
from pipelines.publishing.instructions import Instructions
from pipelines.publishing.mlflow_model import signature
from pipelines.publishing.mlflow_policy import MlflowPolicy
from pipelines.publishing.mlflow_server import GuardedServer, guarded
from pipelines.serving.request_format import MAX_ROWS, ServedPolicy
from pipelines.training.data import training_contract
from preprocessing.store.episode_store import EpisodeStore
from tests.support.command_line import REPOSITORY


@pytest.fixture(scope="module")
def trained(store: str, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    experiment, opened = load_recipe("rt1_tiny"), EpisodeStore.open(store)
    contract = training_contract(experiment, [opened])
    folder = tmp_path_factory.mktemp("bundle")
    model, known = experiment.model.build().eval(), Instructions.of_stores(contract.encoder, [opened])
    made = TrainedModel(
        model=model, contract=contract, step=0, source=str(folder), metadata={"stores": []}, instructions=known
    )
    write_bundle(made, folder)
    return made


@pytest.fixture(scope="module")
def server(trained: TrainedModel) -> Iterator[GuardedServer]:
    """MLflow's scoring server of this policy, guarded."""
    policy = MlflowPolicy()
    policy.load_context(SimpleNamespace(artifacts={"policy": trained.source}))
    described = Model(signature=signature(trained))
    described.add_flavor("python_function", loader_module="mlflow.pyfunc.model")
    impl = SimpleNamespace(predict=lambda data, params=None: policy.predict(None, data, params))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "false")  # so that it is taken back: the server sets it
        yield guarded(PyFuncModel(model_meta=described, model_impl=impl))


def post(server: Any, body: Any, content_type: str = "application/json", **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and answer of one request to /invocations."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    told = {"content-type": content_type, **headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/invocations",
        "raw_path": b"/invocations",
        "query_string": b"",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in told.items() if value],
    }
    pieces = [content[first : first + 1000] for first in range(0, len(content), 1000)] or [b""]
    messages = iter(
        {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
        for number, piece in enumerate(pieces, start=1)
    )
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(server(scope, receive, send))
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))


def test_the_curl_line_is_answered_as_it_stands(server: GuardedServer, trained: TrainedModel) -> None:
    line = shlex.split(ServedPolicy.of(InferenceModel(trained)).curl())
    assert line[:2] == ["curl", "http://127.0.0.1:5001/invocations"] and line[2:4] == [
        "-H",
        "Content-Type: application/json",
    ]
    status, answer = post(server, json.loads(line[5]))
    (row,) = answer["predictions"]
    assert status == 200 and row["frames_seen"] == 1 and row["terminate_episode_class"] in ("terminate", "arm", "base")
    assert post(server, json.loads(line[5]))[1]["predictions"][0]["frames_seen"] == 2


def test_the_curl_line_of_the_readme_is_answered(server: GuardedServer) -> None:
    readme = (REPOSITORY / "README.md").read_text()
    (block,) = [block for block in readme.split("```sh\n") if block.startswith("curl ")]
    words = shlex.split(block.partition("```")[0])
    status, answer = post(server, json.loads(words[words.index("-d") + 1]))
    assert status == 200 and len(answer["predictions"]) == 1, answer


def test_of_several_datasets_the_line_names_one_and_says_so(trained: TrainedModel) -> None:
    (side,) = trained.contract.datasets
    both = replace(trained.contract, datasets=(side, replace(side, name="other")))
    served = ServedPolicy.of(InferenceModel(replace(trained, contract=both)))
    assert served.request()["params"] == {"dataset": "metaworld_sample"}
    assert "dataset must be one of metaworld_sample, other." in served.description()


def rows(server: GuardedServer, trained: TrainedModel, count: int = 1, **changes: Any) -> dict[str, Any]:
    request: dict[str, Any] = ServedPolicy.of(InferenceModel(trained)).request()
    return {"dataframe_records": [{**request["dataframe_records"][0], **changes}] * count}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"params": {"unnorm_key": "a"}}, "there is no parameter 'unnorm_key': this policy takes dataset, contract"),
        ({"params": {"dataset": "a"}}, "dataset 'a' is not in this contract: name one of metaworld_sample"),
        ({"params": [1]}, '"params" must be an object'),
        ({"dataset": "metaworld_sample"}, "there is no field 'dataset': this policy takes dataframe_records"),
        ({"row": {"robot_id": "a"}}, "there is no column 'robot_id': this policy takes image, instruction"),
        ({"row": {"image": "no base64!"}}, "row 0: image is a text that is not base64"),
        ({"row": {"image": [[[0] * 3] * 4] * 4, "instruction": "sing"}}, "row 0: instruction 'sing' is not one of"),
        ({"row": {"robot": None}}, "row 0: this policy looks at the last 3 frames of a robot, and the row names none"),
        ({"count": MAX_ROWS + 1}, f"{MAX_ROWS + 1} rows in one request: at most {MAX_ROWS} are answered"),
    ],
)
def test_a_refusal_is_its_reason_alone(
    server: GuardedServer, trained: TrainedModel, change: dict[str, Any], reason: str
) -> None:
    more = {key: value for key, value in change.items() if key not in ("row", "count")}
    status, answer = post(server, rows(server, trained, change.get("count", 1), **change.get("row", {})) | more)
    assert status == 400 and answer["message"].startswith(reason), answer
    assert "stack_trace" not in answer and "\n" not in answer["message"]


@pytest.mark.parametrize(
    ("body", "content_type", "status", "reason"),
    [
        (b"{", "application/json", 400, "the request is not JSON"),
        (b"[" * 100_000, "application/json", 400, "the request is not JSON"),
        (b"[]", "application/json", 400, "the request must be an object"),
        (b"{}", "", 415, "the request has no Content-Type"),
        (b"{}", "text/html", 415, "the request has the Content-Type 'text/html': send"),
        (b"image,instruction\nx,y\n", "text/csv", 415, "the request has the Content-Type 'text/csv': send"),
        (b"{}", "application/json; charset=utf-8", 400, "the request must hold one of dataframe_records, "),
        (b'{"inputs": {}, "instances": []}', "application/json", 400, "the request must hold one of "),
        (
            b'{"dataframe_records": [{"instruction": "a"}]}',
            "application/json",
            400,
            "Model is missing inputs ['image']",
        ),
    ],
)
def test_what_is_no_request_is_refused(
    server: GuardedServer, body: bytes, content_type: str, status: int, reason: str
) -> None:
    answered, answer = post(server, body, content_type)
    assert answered == status and answer["message"].startswith(reason), answer


@pytest.mark.parametrize("headers", [{}, {"content_length": "2001"}])
def test_a_request_that_is_too_large_is_not_read_to_its_end(
    server: GuardedServer, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_server, "MAX_REQUEST_BYTES", 2000)
    status, answer = post(server, b" " * 5000, **headers)
    assert status == 413 and "larger than 2000 bytes" in answer["message"]


def test_a_stack_trace_goes_to_the_log_and_its_last_line_to_the_caller(capfd: pytest.CaptureFixture[str]) -> None:
    """As policies registered earlier answer: MLflow's words, and the reason at the end of a stack trace."""

    async def older(scope: Any, receive: Any, send: Any) -> None:
        trace = "Traceback (most recent call last):\n  ...\nValueError: row 0: image is nothing: send one"
        body = json.dumps({"error_code": "BAD_REQUEST", "message": "Encountered an unexpected", "stack_trace": trace})
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": body.encode()})

    server = GuardedServer(server=older, columns=("image",), parameters=())
    assert post(server, {"inputs": {}}) == (
        400,
        {"error_code": "BAD_REQUEST", "message": "row 0: image is nothing: send one"},
    )
    assert "Traceback" in capfd.readouterr().err


def test_the_server_imports_nothing_of_ours() -> None:
    """What it imported before the model is loaded would stand in place of the code that the model carries."""
    source = Path(policy_server.__file__).read_text()
    assert not [line for line in source.splitlines() if line.strip().startswith(("from pipelines", "import pipelines"))]


def test_a_registered_bundle_still_opens_without_a_table(trained: TrainedModel, tmp_path: Path) -> None:
    write_bundle(replace(trained, instructions=Instructions(trained.contract.encoder, {})), tmp_path)
    assert read_bundle(str(tmp_path)).instructions.vectors == {}


def test_the_request_format_and_the_dimensions_fit_into_80_columns(trained: TrainedModel) -> None:
    lines = ServedPolicy.of(InferenceModel(trained)).description().splitlines()
    assert [line for line in lines if len(line) > 80 and not line.startswith("curl")] == []
