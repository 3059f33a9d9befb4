"""MLflow's scoring server as `rtp serve` starts it: with limits, and with refusals of one sentence.

    python -P policy_server.py MODEL_URI HOST PORT

A program of its own that imports nothing of ours: a registered model is loaded with the code that it carries. What it
does not check itself (rows, frames) is checked by that code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_REQUEST_BYTES = 2**26  # 64 MiB: 64 frames of a megabyte each
_FORMATS = ("dataframe_records", "dataframe_split", "instances", "inputs")
_EXAMPLE = '{"dataframe_records": [{"image": ..., "instruction": ...}]}'


class Refusal(Exception):
    """A request that is not answered: the HTTP status, and the reason in one sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class GuardedServer:
    """The ASGI app `server` of a model with these columns and parameters."""

    server: Callable[[Message, Receive, Send], Awaitable[None]]
    columns: tuple[str, ...]
    parameters: tuple[str, ...]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/invocations":
            await self.server(scope, receive, send)
            return
        try:
            body = await _body(scope, receive)
            self._require_known(scope, body)
        except Refusal as refusal:
            await _respond(send, refusal.status, {"error_code": "BAD_REQUEST", "message": str(refusal)})
            return
        await self.server(scope, _once(body), _OneSentence(send))

    def _require_known(self, scope: Message, body: bytes) -> None:
        """Raise Refusal for what MLflow would pass over without a word."""
        told = _header(scope, b"content-type")
        if told.partition(";")[0].strip().lower() != "application/json":
            given = f"the Content-Type {told!r:.60}" if told else "no Content-Type"
            raise Refusal(415, f"the request has {given}: send it with Content-Type: application/json")
        request = _parsed(body)
        _require("field", request, (*_FORMATS, "params"))
        if sum(name in request for name in _FORMATS) != 1:
            raise Refusal(400, f"the request must hold one of {', '.join(_FORMATS)}: {_EXAMPLE}")
        for columns in _columns(request):
            _require("column", columns, self.columns)
        parameters = request.get("params") or {}
        if not isinstance(parameters, dict):
            raise Refusal(400, f'"params" must be an object such as {{"dataset": "NAME"}}, got {parameters!r:.60}')
        _require("parameter", parameters, self.parameters)


def _require(kind: str, given: Any, known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise Refusal(400, f"there is no {kind} {name!r:.60}: this policy takes {', '.join(known)}")


def _columns(request: Mapping[str, Any]) -> list[Any]:
    """The names of the columns, once for each row where every row has its own."""
    split = request.get("dataframe_split")
    found = [split.get("columns") or []] if isinstance(split, dict) else []
    for records in (request.get("dataframe_records"), request.get("instances"), request.get("inputs")):
        found += [row for row in (records if isinstance(records, list) else [records]) if isinstance(row, dict)]
    return found


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the request is not JSON ({error})") from None
    if not isinstance(request, dict):
        raise Refusal(400, f"the request must be an object: {_EXAMPLE}")
    return request


def _header(scope: Message, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name), "")


async def _body(scope: Message, receive: Receive) -> bytes:
    """The request's body. Raises Refusal as soon as it is too large."""
    told = _header(scope, b"content-length")
    parts, size = [], 0
    while max(size, int(told) if told.isdigit() else 0) <= MAX_REQUEST_BYTES:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if not message.get("more_body"):
            return b"".join(parts)
    raise Refusal(413, f"the request is larger than {MAX_REQUEST_BYTES} bytes: send fewer rows at once")


def _once(body: bytes) -> Receive:
    """What the server behind receives: the whole body, then that nobody is there any more."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        return next(messages, {"type": "http.disconnect"})

    return receive


class _OneSentence:
    """Passes a response on; of an error, the reason alone, its stack trace to this server's log."""

    def __init__(self, send: Send) -> None:
        self._send, self._status, self._parts = send, 0, [b""]

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
        if self._status < 400:
            await self._send(message)
        elif message["type"] == "http.response.body":
            self._parts.append(message.get("body", b""))
            if not message.get("more_body"):
                await _respond(self._send, self._status, _explained(b"".join(self._parts)))


def _explained(body: bytes) -> dict[str, Any]:
    """MLflow's account of an error with the reason as its message."""
    try:
        account = dict(json.loads(body))
    except (ValueError, TypeError):
        return {"error_code": "BAD_REQUEST", "message": body.decode(errors="replace")}
    trace = account.pop("stack_trace", None)
    if trace is not None:
        print(trace, file=sys.stderr, flush=True)
        account["message"] = str(trace).strip().splitlines()[-1].partition(": ")[2]
    message = str(account.get("message", ""))  # MLflow's, which repeats the rows of the request before the reason
    account["message"] = message.rpartition("Error: ")[2] if message.startswith("Failed to") else message
    return account


async def _respond(send: Send, status: int, account: Mapping[str, Any]) -> None:
    body = json.dumps(account).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def guarded(model: Any) -> GuardedServer:
    """The server of a model that MLflow has loaded."""
    from mlflow.pyfunc import scoring_server

    inputs, params = model.metadata.get_input_schema(), model.metadata.get_params_schema()
    return GuardedServer(
        server=scoring_server.init(model),
        columns=tuple(inputs.input_names()),
        parameters=tuple(param.name for param in params.params),
    )


if __name__ == "__main__":
    import mlflow
    import uvicorn

    model_uri, host, port = sys.argv[1:]
    uvicorn.run(guarded(mlflow.pyfunc.load_model(model_uri)), host=host, port=int(port))
