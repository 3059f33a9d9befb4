"""Robots that cost next to nothing, so that a server on the same machine is what is measured.

Each speaks openpi's protocol with a message that was packed and masked once, as a robot on a machine of its own would
have done it. One process runs many by waiting on all of their sockets: `Crew` starts it, and it imports little.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

import numpy as np

from pipelines.serving.codecs import openpi

_UPGRADE = (
    "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the robots of one process saw, once they were warm."""

    seconds: list[float] = field(default_factory=list)
    """Of each answer, from the first byte sent to the last received."""
    errors: int = 0
    lost: int = 0
    """Connections that ended."""


class Robot:
    """One connection that sends the same observation again and again."""

    def __init__(self, url: str, observation: dict[str, object]) -> None:
        host = urlsplit(url).netloc
        name, _, port = host.rpartition(":")
        self.socket = socket.create_connection((name, int(port)), timeout=120)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(_UPGRADE.format(host=host).encode())
        self._received = b""
        while b"\r\n\r\n" not in self._received:
            self._received += self.socket.recv(65536)
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        assert b" 101 " in head.split(b"\r\n")[0], head
        self._message = _masked(_BINARY, openpi.pack(observation))
        self.began = 0.0
        while not self._kinds():  # the server speaks first
            self._receive()

    def ask(self) -> None:
        self.began = time.perf_counter()
        self.socket.sendall(self._message)

    def answers(self) -> list[int]:
        """The kinds of the messages that have arrived in full, now that there is something to read."""
        return self._kinds() if self._receive() else [_CLOSE]

    def _receive(self) -> bool:
        """Whether the connection goes on."""
        arrived = self.socket.recv(65536)
        self._received += arrived
        return bool(arrived)

    def _kinds(self) -> list[int]:
        """Of the messages that have arrived in full; pings are answered."""
        kinds: list[int] = []
        while (found := _first_frame(self._received)) is not None:
            kind, end = found
            if kind == _PING:
                self.socket.sendall(_masked(_PONG, self._received[2:end]))
            else:
                kinds.append(kind)
            self._received = self._received[end:]
        return kinds


class Crew:
    """So many robots in a process of its own. They are connected when this returns, and ask when `begin` tells them."""

    def __init__(self, url: str, text: str, robots: int) -> None:
        command = [sys.executable, __file__, url, text, str(robots)]
        self._running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._running.stdout is not None
        assert self._running.stdout.readline() == "ready\n"

    def begin(self, *, at: float, seconds: float, rate_hz: float) -> None:
        """From now on; what they see counts for `seconds` from the time `at`. As `ask_as_robots` has it."""
        assert self._running.stdin is not None
        self._running.stdin.write(json.dumps({"at": at, "seconds": seconds, "rate_hz": rate_hz}) + "\n")
        self._running.stdin.flush()

    def asked(self) -> Asked:
        printed, _ = self._running.communicate()
        assert self._running.returncode == 0
        return Asked(**json.loads(printed))


def ask_as_robots(crew: list[Robot], *, at: float, seconds: float, rate_hz: float) -> Asked:
    """What these robots see for `seconds` from the time `at` on. `rate_hz` 0 asks as fast as it is answered, else each
    robot so often."""
    waiting = selectors.DefaultSelector()
    for robot in crew:
        waiting.register(robot.socket, selectors.EVENT_READ, robot)
    asked, begins = Asked(), time.perf_counter() + at - time.time()
    errors = lost = 0
    apart = 1 / (len(crew) * rate_hz) if rate_hz else 0.0  # robots are not in step
    due = {robot: time.perf_counter() + number * apart for number, robot in enumerate(crew)}
    while time.perf_counter() < begins + seconds and waiting.get_map():
        now = time.perf_counter()
        for robot in [robot for robot, when in due.items() if when <= now]:
            del due[robot]
            robot.ask()
        pause = max(min(due.values(), default=now + 1) - time.perf_counter(), 0)
        for key, _ in waiting.select(pause):
            robot = key.data
            for kind in robot.answers():
                now = time.perf_counter()
                if kind == _CLOSE:
                    lost += 1
                    waiting.unregister(robot.socket)
                    continue
                if robot.began >= begins:
                    errors += kind == _TEXT
                    asked.seconds.append(now - robot.began)
                due[robot] = max(now, robot.began + 1 / rate_hz) if rate_hz else now
    return Asked(seconds=asked.seconds, errors=errors, lost=lost)


def frame(seed: int, height: int = 256, width: int = 320) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _masked(kind: int, payload: bytes) -> bytes:
    """A websocket frame from a client (RFC 6455, section 5.2)."""
    mask, size = os.urandom(4), len(payload)
    if size < 126:
        length = bytes([128 | size])
    else:
        length = struct.pack("!BH", 254, size) if size < 2**16 else struct.pack("!BQ", 255, size)
    keys = np.resize(np.frombuffer(mask, np.uint8), size)
    return bytes([128 | kind]) + length + mask + (np.frombuffer(payload, np.uint8) ^ keys).tobytes()


def _first_frame(received: bytes) -> tuple[int, int] | None:
    """(kind, end) of the frame from a server that `received` begins with, if it is there in full."""
    if len(received) < 2:
        return None
    size, start = received[1] & 127, 2
    if size >= 126:
        start = 4 if size == 126 else 10
        if len(received) < start:
            return None
        size = int.from_bytes(received[2:start], "big")
    return (received[0] & 15, start + size) if len(received) >= start + size else None


def _main(url: str, text: str, robots: str) -> None:
    crew = [Robot(url, {"image": frame(number), "prompt": text}) for number in range(int(robots))]
    print("ready", flush=True)
    print(json.dumps(asdict(ask_as_robots(crew, **json.loads(sys.stdin.readline())))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
