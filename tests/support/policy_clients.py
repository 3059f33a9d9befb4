"""Robots for tests: each speaks one of the server's protocols, and nothing of the server's own code."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
from websockets.sync.client import ClientConnection, connect


def post(
    url: str, body: object, *, content_type: str = "application/json", headers: Mapping[str, str] | None = None
) -> tuple[int, Any]:
    """Status and parsed answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    told = {"Content-Type": content_type} if content_type else {}
    return _opened(urllib.request.Request(url, content, {**told, **(headers or {})}))


def get(url: str, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
    return _opened(urllib.request.Request(url, headers=dict(headers or {})))


def _opened(request: urllib.request.Request) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            status, content = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content


class OpenpiRobot:
    """As openpi-client: the server speaks first, answers are binary, errors text."""

    def __init__(self, url: str, **options: Any) -> None:
        self.socket: ClientConnection = connect(url, compression=None, max_size=None, **options)
        self.metadata = self._unpacked(self.socket.recv(timeout=60))

    def infer(self, observation: Mapping[str, object]) -> dict[str, Any]:
        return self.exchange(self.packed(observation))

    def exchange(self, message: bytes | str) -> dict[str, Any]:
        """Raises RuntimeError with the server's text, as the client does."""
        self.socket.send(message)
        answer = self.socket.recv(timeout=60)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return self._unpacked(answer)

    @staticmethod
    def packed(fields: Mapping[str, object]) -> bytes:
        def array(value: Any) -> Any:
            return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}

        return msgpack.packb(fields, default=array)  # type: ignore[return-value]

    @staticmethod
    def _unpacked(message: bytes | str) -> dict[str, Any]:
        def leaf(pairs: dict[Any, Any]) -> Any:
            if b"__ndarray__" not in pairs:
                return pairs
            return np.ndarray(buffer=pairs[b"data"], dtype=pairs[b"dtype"], shape=pairs[b"shape"])

        assert isinstance(message, bytes), message
        return msgpack.unpackb(message, object_hook=leaf)

    def __enter__(self) -> OpenpiRobot:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()


class HarnessRobot:
    """As the vla-eval harness: the client speaks first, an answer repeats the number of its question."""

    def __init__(self, url: str) -> None:
        self.socket: ClientConnection = connect(url, compression=None, max_size=None)
        self.seq = 0

    def send(self, kind: str, payload: Mapping[str, object]) -> None:
        self.seq += 1
        envelope = {"type": kind, "payload": payload, "seq": self.seq, "timestamp": 0.0}
        self.socket.send(msgpack.packb(envelope))  # type: ignore[arg-type]

    def receive(self) -> dict[str, Any]:
        answer = self.socket.recv(timeout=60)
        assert isinstance(answer, bytes)
        return msgpack.unpackb(answer, object_hook=_harness_array)

    def ask(self, kind: str, payload: Mapping[str, object]) -> dict[str, Any]:
        self.send(kind, payload)
        return self.receive()

    def __enter__(self) -> HarnessRobot:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()


def _harness_array(pairs: dict[str, Any]) -> Any:
    if "__ndarray__" not in pairs:
        return pairs
    return np.frombuffer(pairs["data"], pairs["dtype"]).reshape(pairs["shape"])
