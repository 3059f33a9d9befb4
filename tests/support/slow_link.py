"""A wire with delay and loss between a host and its switch: `python slow_link.py HOST SWITCH DELAY_S LOSS`.

Runs in the switch's network space, whose kernel may know nothing of delays: two TAP devices stand where the host's
cable was, and this process carries the frames from one to the other, each `delay_s` late, one in 1/LOSS not at all.
Standard library only.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_FRAME = 65_536


def open_tap(name: str, bridge: str) -> int:
    """A TAP device of this name, in the bridge; its file descriptor."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TAP | _IFF_NO_PI))
    _ip("link", "set", "dev", name, "txqueuelen", "10000", "master", bridge, "up")
    return tap


def carry(ends: tuple[int, int], *, delay_s: float, loss: float) -> None:
    """For ever; frames of a direction stay in order."""
    chance = random.Random(0)
    waiting = collections.deque[tuple[float, int, bytes]]()  # (when due, to which end, frame), by time
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    while True:
        patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for end in select.select(ends, [], [], patience)[0]:
            for frame in _frames(end):
                if chance.random() >= loss:
                    waiting.append((time.monotonic() + delay_s, other[end], frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, end, frame = waiting.popleft()
            with contextlib.suppress(BlockingIOError):  # a full queue drops frames, as a switch does
                os.write(end, frame)


def _frames(end: int) -> list[bytes]:
    """What has arrived at this end, up to some frames."""
    frames: list[bytes] = []
    with contextlib.suppress(BlockingIOError):
        while len(frames) < 256:
            frames.append(os.read(end, _FRAME))
    return frames


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def main(host: str, switch: str, delay_s: str, loss: str) -> None:
    """Put the wire between the host's port and the switch, until this process ends."""
    side = f"{host}-side"
    _ip("link", "add", "name", side, "type", "bridge")
    ends = (open_tap(f"{host}-a", side), open_tap(f"{host}-b", switch))
    _ip("link", "set", "dev", side, "up")
    _ip("link", "set", "dev", host, "master", side)
    print("ready", flush=True)
    carry(ends, delay_s=float(delay_s), loss=float(loss))


if __name__ == "__main__":
    main(*sys.argv[1:])
