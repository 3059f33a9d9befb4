"""Malformed messages, made of valid ones: bytes changed, cut, doubled, and fields replaced by what does not belong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np

from tests.support.policy_clients import OpenpiRobot

Message = Callable[[random.Random], bytes]

_WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**63,
    float("nan"),
    float("inf"),
    "",
    "\x00",
    "x" * 5000,
    b"",
    b"\xff\xd8\xff\xe0" + b"\x00" * 40,
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\xff\xff\xff\xff\xff\xff\xff\xff\x08\x02\x00\x00\x00",
    [],
    [[]] * 50,
    {},
    {"a": {"b": {"c": []}}},
)
_DTYPES = ("|O", "|V8", "<U9", "<M8[s]", "<f4", "<c16", "f" * 500, 7, None)
_SHAPES: tuple[Any, ...] = ([-1], [0], [2**40], [2**31, 2**31], [4, 4], [1] * 40, "8", None, [None], [96, 96, 3])


def openpi(fields: Mapping[str, object]) -> Message:
    """Malformed forms of an openpi observation."""
    return lambda draw: _spoilt(OpenpiRobot.packed(_replaced(fields, draw, byte_keys=True)), draw)


def harness(payload: Mapping[str, object]) -> Message:
    """Malformed forms of an observation of the vla-eval harness."""

    def message(draw: random.Random) -> bytes:
        envelope = {"type": "observation", "payload": _replaced(payload, draw, byte_keys=False), "seq": 1}
        if draw.random() < 0.2:
            envelope[draw.choice(list(envelope))] = draw.choice(_WRONG[:-2])
        return _spoilt(msgpack.packb(envelope, default=lambda array: array.tolist()), draw)  # type: ignore[arg-type]

    return message


def in_json(fields: Mapping[str, object]) -> Message:
    """Malformed forms of a JSON request."""

    def message(draw: random.Random) -> bytes:
        return _spoilt(json.dumps(_replaced(fields, draw, byte_keys=False), default=repr).encode(), draw)

    return message


def _replaced(fields: Mapping[str, object], draw: random.Random, *, byte_keys: bool) -> dict[str, object]:
    """One field is wrong, missing or an array that is none; the rest as it was."""
    changed = dict(fields)
    name = draw.choice(list(changed))
    kind = draw.random()
    if kind < 0.2:
        del changed[name]
    elif kind < 0.6:
        changed[name] = draw.choice(_WRONG)
    else:
        changed[name] = _no_array(draw, byte_keys=byte_keys)
    return changed


def _no_array(draw: random.Random, *, byte_keys: bool) -> dict[Any, Any]:
    data = draw.randbytes(draw.choice((0, 8, 48, 27648)))
    marker = draw.choice(("__ndarray__", "__image__", "__numpy__", "__npgeneric__"))
    pairs: dict[str, Any] = {marker: True, "data": data, "dtype": draw.choice(_DTYPES), "shape": draw.choice(_SHAPES)}
    pairs |= {"format": draw.choice(("png", "jpeg", "raw", 7))} if marker == "__image__" else {}
    return {key.encode(): value for key, value in pairs.items()} if byte_keys else pairs


def _spoilt(message: bytes, draw: random.Random) -> bytes:
    """As it is in half of the cases; else with some bytes changed, its end cut off, or twice over."""
    kind, changed = draw.random(), bytearray(message)
    if kind < 0.25 and changed:
        for _ in range(draw.randint(1, 6)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    elif kind < 0.4:
        del changed[draw.randrange(len(changed) + 1) :]
    elif kind < 0.5:
        changed += message[: draw.randrange(len(message) + 1)]
    return bytes(changed)


def frame(seed: int) -> np.ndarray:
    """uint8 (96, 96, 3)"""
    return np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)
