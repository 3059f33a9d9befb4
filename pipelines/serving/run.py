"""A server's life: warm up, listen, and on SIGTERM answer what is there before going."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from pipelines.serving import http_routes, sockets
from pipelines.serving.frontend import Frontend
from pipelines.serving.patience import PatientProtocol
from preprocessing.conversion.freed_memory import keep_freed_memory

_DRAIN_S = 10.0
_PING_TIMEOUT_S = 300.0  # a simulator between two episodes may block its own event loop for minutes


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where a server listens. `certificate` and `key` are PEM files for TLS."""

    host: str = "127.0.0.1"
    port: int = 5001
    certificate: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("--tls-certificate and --tls-key go together: give both files, or neither")
        if self.certificate is None or self.key is None:
            return
        for flag, file in (("--tls-certificate", self.certificate), ("--tls-key", self.key)):
            if not Path(file).is_file():
                raise ValueError(f"{flag} {file}: there is no such file")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key)
        except ssl.SSLError as error:
            raise ValueError(
                f"--tls-certificate {self.certificate} and --tls-key {self.key} are no certificate and its private "
                f"key, both PEM ({error.reason or 'unreadable'})"
            ) from error

    def url(self, scheme: str = "http") -> str:
        """`scheme` is http or ws."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}{'s' if self.certificate else ''}://{host}:{self.port}"


def application(frontend: Frontend) -> Starlette:
    """The ASGI app: it starts the service before it takes a request, and what runs beside it."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await frontend.service.start()
        beside = [asyncio.create_task(work()) for work in frontend.beside]
        try:
            yield
        finally:
            for task in beside:
                task.cancel()
            await frontend.service.stop()

    routes = [*http_routes.routes(frontend), *sockets.routes(frontend)]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _unknown})


def serve(frontend: Frontend, listening: Listening, *, on_ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, which is raised again when all that was asked has been answered."""
    keep_freed_memory(most_arenas=2)
    DrainingServer(configured(frontend, listening), frontend, on_ready).run()


def configured(frontend: Frontend, listening: Listening) -> uvicorn.Config:
    """Limits and place of a server."""
    limits = frontend.service.config.limits
    return uvicorn.Config(
        application(frontend),
        host=listening.host,
        port=listening.port,
        ssl_certfile=listening.certificate,
        ssl_keyfile=listening.key,
        http=PatientProtocol,
        ws="websockets-sansio",
        ws_max_size=limits.message_bytes,
        ws_ping_timeout=_PING_TIMEOUT_S,
        ws_per_message_deflate=False,
        limit_concurrency=limits.max_robots + 64,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        access_log=False,
        log_config=None,
    )


@contextlib.contextmanager
def in_background(frontend: Frontend, listening: Listening) -> Iterator[DrainingServer]:
    """A server that answers, in a thread of this process, for the duration of the block."""
    ready = threading.Event()
    server = DrainingServer(configured(frontend, listening), frontend, ready.set)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not ready.wait(0.05):
            if not thread.is_alive():
                raise ChildProcessError("the server does not start")
        yield server
    finally:
        server.should_exit = True
        thread.join()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class DrainingServer(uvicorn.Server):
    """Answers open requests before it closes its connections."""

    def __init__(self, config: uvicorn.Config, frontend: Frontend, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._on_ready = frontend.service, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.is_stopping or not self.started:
            super().handle_exit(sig, frame)
            return
        self._service.is_stopping = True
        self._captured_signals.append(sig)
        self._loop.call_soon_threadsafe(self._begin_draining)

    def _begin_draining(self) -> None:
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        await self._service.drain(_DRAIN_S)
        self.should_exit = True


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    sentence = f"{request.method} {request.url.path:.100}: {error.detail}"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        sentence += f"; it takes {(error.headers or {}).get('Allow', 'another method')}"
    elif error.status_code == HTTPStatus.NOT_FOUND:
        sentence += "; POST /act and /invocations take frames, so do websockets at / and /vla, and GET / is a page"
    return JSONResponse({"error": sentence, "field": ""}, status_code=error.status_code)
