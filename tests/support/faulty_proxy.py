"""A proxy before an HTTP server that breaks chosen answers on the wire: resets, silence, bodies that end too soon."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["reset", "silence", "short"]
Plan = Callable[[str, str], Fault | None]
"""(path, Range header or "") of a GET -> what is done to its answer."""


class FaultyProxy(ThreadingHTTPServer):
    """Answers with what `upstream` (host:port) says, or breaks off as `plan` says; `faults` are those so far."""

    daemon_threads = True

    def __init__(self, upstream: str, plan: Plan) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.plan, self.faults = upstream, plan, list[Fault]()
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        """Where clients reach it, as host:port."""
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone away is what the proxy is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.plan(self.path, self.headers.get("Range", "")) if self.command == "GET" else None
        if fault is not None:
            self.server.faults.append(fault)
        if fault == "silence":
            self.server.closing.wait()
        if fault in ("reset", "silence"):
            self._reset()
            return
        status, headers, answer = self._asked(body)
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Connection", "close")  # on a kept connection the client asks again unseen
        self.end_headers()
        self.wfile.write(answer[: len(answer) // 2] if fault == "short" else answer)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, *_: object) -> None: ...

    def _asked(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Status, headers and body of the upstream's answer, whose length is always said beforehand."""
        with contextlib.closing(http.client.HTTPConnection(self.server.upstream)) as upstream:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body)
            response = upstream.getresponse()
            answer = response.read()
            kept = [(n, v) for n, v in response.getheaders() if n.lower() not in ("transfer-encoding", "connection")]
            if response.getheader("Content-Length") is None:
                kept.append(("Content-Length", str(len(answer))))
            return response.status, kept, answer

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


@contextlib.contextmanager
def faulty_proxy(upstream: str, plan: Plan) -> Iterator[FaultyProxy]:
    """A running proxy in front of `upstream` that does to its requests what `plan` says."""
    proxy = FaultyProxy(upstream, plan)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.closing.set()
        proxy.shutdown()
        proxy.server_close()
        thread.join()
