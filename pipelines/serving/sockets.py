"""The server's websockets: openpi's protocol at /, the vla-eval harness's at /vla. A connection is one robot.

A message that cannot be answered gets an error, and the connection stays. openpi: the server speaks first, an answer is
binary, an error text. vla-eval: the client speaks first, and an answer repeats the number of its question.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from pipelines.serving.adapters.base import Adapter
from pipelines.serving.codecs import openpi, vla_eval
from pipelines.serving.codecs.vla_eval import Message
from pipelines.serving.frontend import Frontend, Protocol
from pipelines.serving.question import Answer, Question
from pipelines.serving.refusal import Refusal
from pipelines.serving.reply import fields
from pipelines.serving.request_ids import new_request_id, own_request_id
from pipelines.serving.server_log import ANSWERS
from pipelines.serving.sessions import Session
from pipelines.serving.vla_specs import action_spec, observation_spec

log, answers = logging.getLogger("rtp.serve"), logging.getLogger(ANSWERS)

Conversation = Callable[[WebSocket, Session], Awaitable[None]]


def routes(frontend: Frontend) -> list[WebSocketRoute]:
    sockets = _Sockets(frontend)
    return [
        WebSocketRoute("/", partial(sockets.connection, "openpi", sockets.openpi)),
        WebSocketRoute("/vla", partial(sockets.connection, "vla", sockets.vla)),
    ]


class _Sockets:
    """The websockets of one server."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend, self._service = frontend, frontend.service
        self._numbers = itertools.count(1)

    async def connection(self, protocol: Protocol, converse: Conversation, websocket: WebSocket) -> None:
        """Let a caller in who may ask, for as long as it stays."""
        name = f"{protocol}-{next(self._numbers)}"
        try:
            self._frontend.access.require(websocket.headers)
            session = self._service.sessions.connected(name)
        except Refusal as refusal:
            log.info("refused", extra={"robot": name, **refusal.to_json()})
            await websocket.send_denial_response(_denial(refusal))
            return
        try:
            await websocket.accept()
            log.info("connected", extra={"robot": name, "from": websocket.client and websocket.client.host})
            await converse(websocket, session)
        except WebSocketDisconnect:
            pass
        finally:
            self._service.disconnected(session)
            log.info("disconnected", extra={"robot": name})

    # --- openpi ---

    async def openpi(self, websocket: WebSocket, session: Session) -> None:
        adapter = self._frontend.adapter_for("openpi")
        await websocket.send_bytes(openpi.pack(self._frontend.greeting("openpi")))
        previous_total_ms: float | None = None
        while True:
            message = await _received(websocket)
            asked = _Asked()
            try:
                answer = await self._answered(session, partial(_openpi_question, adapter, message, asked), asked)
                reply = fields(answer, adapter) | _timings(answer, asked.started, previous_total_ms) | asked.to_json()
                await websocket.send_bytes(openpi.pack(reply))
                self._count("openpi", session, asked, 200)
            except Refusal as refusal:
                await websocket.send_text(json.dumps(refusal.to_json() | asked.to_json()))
                self._count("openpi", session, asked, refusal.status, refusal)
            previous_total_ms = asked.seconds() * 1000

    # --- vla-eval ---

    async def vla(self, websocket: WebSocket, session: Session) -> None:
        begins = False
        while True:
            content = await _received(websocket)
            asked = _Asked()
            try:
                message = await self._service.in_reader(partial(_vla_message, content))
                if message.type == "observation":
                    await self._vla_action(websocket, session, message, asked, begins=begins)
                    begins = False
                elif message.type == "episode_start":
                    begins = True
                elif message.type == "hello":
                    await websocket.send_bytes(vla_eval.pack(self._hello(message)))
                elif message.type == "episode_end":
                    metrics = message.payload.get("metrics")
                    self._service.succeeded(session, metrics.get("success") if isinstance(metrics, dict) else None)
                else:
                    raise Refusal(f"there is no message type {message.type!r:.40}", field="type")
                self._count("vla", session, asked, 200)
            except Refusal as refusal:
                seq = vla_eval.sequence_number(content) if isinstance(content, bytes) else 0
                error = Message(type="error", payload=refusal.to_json() | asked.to_json(), seq=seq)
                await websocket.send_bytes(vla_eval.pack(error))
                self._count("vla", session, asked, refusal.status, refusal)

    async def _vla_action(
        self, websocket: WebSocket, session: Session, message: Message, asked: _Asked, *, begins: bool
    ) -> None:
        adapter = self._frontend.adapter_for("vla")
        observation = dict(message.payload) | ({"reset": True} if begins else {})
        asked.named_by(observation)
        answer = await self._answered(session, partial(adapter.question, observation), asked)
        reply = fields(answer, adapter)
        command = adapter.command(answer.action.values, answer.action.units)  # one action for one observation
        payload = reply | {"actions": command, "tokens": answer.tokens_A} | asked.to_json()
        await websocket.send_bytes(vla_eval.pack(Message(type="action", payload=payload, seq=message.seq)))

    def _hello(self, message: Message) -> Message:
        if message.payload.get("protocol_version", vla_eval.PROTOCOL_VERSION) != vla_eval.PROTOCOL_VERSION:
            raise Refusal(
                f"protocol_version must be {vla_eval.PROTOCOL_VERSION}, got "
                f"{message.payload.get('protocol_version')!r:.40}",
                field="protocol_version",
            )
        adapter = self._frontend.adapter_for("vla")
        greeting = self._frontend.greeting("vla")
        payload = {
            "harness_version": message.payload.get("harness_version", ""),
            "protocol_version": vla_eval.PROTOCOL_VERSION,
            "model_server": f"rt-pipelines {greeting['model']}",
            "capabilities": {},
            "action_spec": action_spec(adapter),
            "observation_spec": observation_spec(adapter, self._service.model.roles),
            "policy": greeting,
        }
        return Message(type="hello", payload=payload, seq=message.seq)

    # --- both ---

    async def _answered(self, session: Session, read: Callable[[], Question], asked: _Asked) -> Answer:
        try:
            return await self._service.ask(session, read)
        except Refusal:
            raise
        except Exception:
            log.exception("a request failed", extra={"robot": session.name, "request": asked.request_id})
            raise Refusal("the server failed: its log says why", status=500) from None

    def _count(
        self, protocol: Protocol, session: Session, asked: _Asked, status: int, refusal: Refusal | None = None
    ) -> None:
        seconds, about = asked.seconds(), {"robot": session.name, "request": asked.request_id}
        self._service.metrics.answered(protocol, status, seconds)
        if refusal is not None:
            log.info("refused", extra=about | refusal.to_json())
        else:
            answers.info("answered", extra=about | {"ms": round(seconds * 1e3, 2)})


class _Asked:
    """A robot's message: when it came, and the id that answer and log give it, its own `request_id` or a new one."""

    def __init__(self) -> None:
        self.started, self.request_id = time.perf_counter(), new_request_id()

    def named_by(self, observation: Mapping[str, object]) -> None:
        self.request_id = own_request_id(observation.get("request_id")) or self.request_id

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def to_json(self) -> dict[str, str]:
        return {"request_id": self.request_id}


async def _received(websocket: WebSocket) -> bytes | str:
    """The next message. Raises WebSocketDisconnect where there is none."""
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    content = message.get("bytes")
    return content if content is not None else message.get("text", "")


def _openpi_question(adapter: Adapter, message: bytes | str, asked: _Asked) -> Question:
    observation = openpi.unpack(_binary(message))
    asked.named_by(observation)
    return adapter.question(observation)


def _vla_message(message: bytes | str) -> Message:
    return vla_eval.unpack(_binary(message))


def _binary(message: bytes | str) -> bytes:
    if isinstance(message, str):
        raise Refusal("messages must be binary, this one is text")
    return message


def _denial(refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.to_json(), status_code=refusal.status)


def _timings(answer: Answer, started: float, previous_total_ms: float | None) -> dict[str, object]:
    server: dict[str, float] = {"infer_ms": (time.perf_counter() - started) * 1000}
    if previous_total_ms is not None:
        server["prev_total_ms"] = previous_total_ms
    return {"server_timing": server, "policy_timing": {"infer_ms": answer.infer_ms}}
