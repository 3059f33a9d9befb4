"""The server's HTTP side: /act, /invocations, what it says of itself, and whether it lives."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pipelines.serving.adapters.base import Adapter
from pipelines.serving.codecs import json_numpy, mlflow_rows
from pipelines.serving.frontend import Frontend
from pipelines.serving.observation import robot_of
from pipelines.serving.page import PAGE, PAGE_POLICY
from pipelines.serving.question import Answer, Question
from pipelines.serving.refusal import Refusal
from pipelines.serving.reply import fields, plain
from pipelines.serving.request_ids import new_request_id, own_request_id
from pipelines.serving.server_log import ANSWERS
from pipelines.serving.service import Prepared
from pipelines.serving.sessions import Session

log, answers = logging.getLogger("rtp.serve"), logging.getLogger(ANSWERS)

_BODY_S = 30.0  # a body that takes longer to arrive is a caller that blocks a place

Answering = Callable[[Request], Awaitable[Response]]


def routes(frontend: Frontend) -> list[Route]:
    http = _Http(frontend)
    return [
        Route("/", http.named(http.page), methods=["GET"]),
        Route("/act", http.guarded("act", http.act), methods=["POST"]),
        Route("/invocations", http.guarded("invocations", http.invocations), methods=["POST"]),
        Route("/describe", http.guarded("describe", http.describe), methods=["GET"]),
        Route("/robots", http.guarded("robots", http.robots), methods=["GET"]),
        Route("/metrics", http.guarded("metrics", http.metrics), methods=["GET"]),
        Route("/config", http.guarded("config", http.config), methods=["GET"]),
        Route("/healthz", http.alive, methods=["GET"]),
        Route("/ping", http.alive, methods=["GET"]),
        Route("/health", http.health, methods=["GET"]),
        Route("/readyz", http.ready, methods=["GET"]),
    ]


class _Http:
    """The routes of one server."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend, self._service = frontend, frontend.service

    def guarded(self, protocol: str, answering: Answering) -> Answering:
        """Only for callers who may ask; refusals become short JSON, and all is counted and logged."""

        async def guard(request: Request) -> Response:
            started = time.perf_counter()
            number = own_request_id(request.headers.get("x-request-id")) or new_request_id()
            try:
                self._frontend.access.require(request.headers)
                response = await answering(request)
            except Refusal as refusal:
                log.info("refused", extra={"request": number, "protocol": protocol} | refusal.to_json())
                response = _refused(refusal, protocol)
            except ClientDisconnect:
                response = Response(status_code=499)
            except Exception:
                log.exception("a request failed", extra={"request": number, "protocol": protocol})
                response = _refused(Refusal("the server failed: its log says why", status=500), protocol)
            seconds = time.perf_counter() - started
            self._service.metrics.answered(protocol, response.status_code, seconds)
            if response.status_code < 400 and protocol in ("act", "invocations"):
                answers.info("answered", extra={"request": number, "protocol": protocol, "ms": round(seconds * 1e3, 2)})
            response.headers["x-request-id"] = number
            return response

        return guard

    def named(self, answering: Answering) -> Answering:
        """Only for callers that know the server by its name."""

        async def guard(request: Request) -> Response:
            try:
                self._frontend.access.require_name(request.headers)
            except Refusal as refusal:
                return _refused(refusal, "page")
            return await answering(request)

        return guard

    # --- actions ---

    async def act(self, request: Request) -> Response:
        """OpenVLA's and OpenVLA-OFT's /act, and our own."""
        body = await self._json_body(request)
        adapter, robot = self._frontend.adapter_for("act"), request.query_params.get("robot")
        seen: dict[str, object] = {}

        def read() -> Question:
            seen.update(_observation(body))
            question = adapter.question(seen)
            unnormalised_by = seen.get("unnorm_key")
            return replace(question, dataset=unnormalised_by) if isinstance(unnormalised_by, str) else question

        def name() -> str | None:
            return robot_of(seen) or mlflow_rows.robot_name(robot)

        prepared = await self._service.prepare(read, lambda: self._service.sessions.known(name() or ""))
        session = self._session(name(), prepared.question)
        answer = await self._service.answer(session, prepared)
        return _act_response(seen, answer, self._frontend.adapter_for("act", as_array=_wants_array(seen)))

    async def invocations(self, request: Request) -> Response:
        """MLflow's scoring format; rows of different robots are answered together."""
        body = await self._json_body(request)
        wanted = {"num_frames": self._frontend.frames_without_a_name(), "cameras": self._service.model.roles}
        rows = await self._service.in_reader(lambda: mlflow_rows.read(body, **wanted))
        arrived = time.monotonic()
        try:
            answers = await self._answers(rows)
        except Refusal:  # of one row: the others get no answer either, and those of later turns are not asked
            for row in rows:
                if (session := self._service.sessions.known(row.robot or "")) is not None:
                    session.note_reset(row.question, arrived)
            raise
        return JSONResponse({"predictions": [mlflow_rows.prediction(answer) for answer in answers]})

    async def _answers(self, rows: Sequence[mlflow_rows.Row]) -> list[Answer]:
        prepared = [
            await _of_row(number, self._service.prepare(lambda question=row.question: question, lambda: None))
            for number, row in enumerate(rows)
        ]
        sessions = [self._session(row.robot, row.question) for row in rows]
        answered: dict[int, Answer] = {}
        for turn in mlflow_rows.turns(sessions):
            if len(rows) > 1:  # a table is no robot's newest frame: each turn begins to wait when it comes
                begins = time.monotonic()
                prepared = [replace(row, arrived=begins) for row in prepared]
            pending = [self._service.answer(sessions[number], prepared[number]) for number in turn]
            answered |= dict(zip(turn, await asyncio.gather(*pending), strict=True))
        return [answered[number] for number in range(len(rows))]

    def _session(self, robot: str | None, question: Question) -> Session:
        mlflow_rows.require_history(robot, question, self._frontend.frames_without_a_name())
        if question.stateless or (robot is None and self._service.model.num_frames == 1):
            return self._service.sessions.alone("")
        return self._service.sessions.named(robot or "")

    async def _json_body(self, request: Request) -> bytes:
        content_type = request.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() != "application/json":
            description = f"the Content-Type {content_type!r:.60}" if content_type else "no Content-Type"
            raise Refusal(f"the request has {description}: send it with Content-Type: application/json", status=415)
        most = self._service.config.limits.message_bytes
        length = request.headers.get("content-length", "")
        parts: list[bytes] = []
        size = int(length) if length.isdecimal() else 0
        if size <= most:
            size = 0
            try:
                async with asyncio.timeout(_BODY_S):
                    async for part in request.stream():
                        parts.append(part)
                        size += len(part)
                        if size > most:
                            break
            except TimeoutError:
                raise Refusal(f"the request did not arrive within {_BODY_S:g} s", status=408) from None
        if size > most:
            raise Refusal(f"the request is larger than {most} bytes: send less at once", status=413)
        return b"".join(parts)

    # --- what the server says of itself ---

    async def page(self, request: Request) -> Response:
        return HTMLResponse(PAGE, headers={"content-security-policy": PAGE_POLICY, "x-frame-options": "DENY"})

    async def describe(self, request: Request) -> Response:
        return JSONResponse(plain(self._frontend.greeting("act")))

    async def robots(self, request: Request) -> Response:
        return JSONResponse({"robots": self._service.sessions.listed()})

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def config(self, request: Request) -> Response:
        """As vla-eval's servers have it. Nothing is set from outside: batching belongs to whoever runs the server."""
        batching = self._service.config.batching
        return JSONResponse({"max_batch_size": batching.max_batch, "max_wait_time": batching.max_wait_ms / 1000})

    async def alive(self, request: Request) -> Response:
        if not self._service.is_alive:
            return PlainTextResponse("the server no longer answers: start it again\n", status_code=503)
        return PlainTextResponse("OK\n")

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Whether to send robots here: alive is not enough while it drains."""
        is_ready = self._service.is_ready and not self._service.is_stopping
        return JSONResponse({"ready": is_ready}, status_code=200 if is_ready else 503)


async def _of_row(number: int, prepared: Awaitable[Prepared]) -> Prepared:
    try:
        return await prepared
    except Refusal as refusal:
        raise Refusal(f"row {number}: {refusal}", field=refusal.field, status=refusal.status) from None


def _observation(body: bytes) -> dict[str, object]:
    """The fields of a request to /act; OpenVLA's clients may send them as a JSON text under `encoded`."""
    observation = json_numpy.read(body)
    encoded = observation.get("encoded")
    if encoded is None:
        return observation
    if not isinstance(encoded, str) or len(observation) > 1:
        raise Refusal("encoded must be a JSON text, and the only field", field="encoded")
    return json_numpy.read(encoded) | {"encoded": True}


def _act_response(observation: Mapping[str, object], answer: Answer, adapter: Adapter) -> Response:
    """In the form that the client of this request reads.

    OpenVLA sends `image` as an array and gets the action (D,) as one; OpenVLA-OFT sends `full_image` and gets a list of
    them; a request with an encoded picture gets an object that names everything.
    """
    reply = fields(answer, adapter)
    actions_HD = adapter.command(answer.action.values, answer.action.units)[None]
    arrays = [json_numpy.array(action_D) for action_D in actions_HD]
    content: object = plain(reply)
    if _wants_array(observation):
        content = arrays if observation.get("full_image") is not None else arrays[0]
    if "encoded" in observation:
        content = json.dumps(content)
    return JSONResponse(content)


def _wants_array(observation: Mapping[str, object]) -> bool:
    """Whether the answer is bare numbers, as OpenVLA's clients read it."""
    if observation.get("full_image") is not None:
        return True
    pictures = [value for name, value in observation.items() if name == "image" or name.startswith("image_")]
    return not any(isinstance(picture, str | list) for picture in pictures) and "explain" not in observation


def _refused(refusal: Refusal, protocol: str) -> Response:
    if protocol == "invocations":
        content: Mapping[str, str] = {"error_code": "BAD_REQUEST", "message": str(refusal), "field": refusal.field}
    else:
        content = refusal.to_json()
    headers = {"www-authenticate": "Bearer"} if refusal.status == 401 else None
    return JSONResponse(content, status_code=refusal.status, headers=headers)
