"""The bytes of the vla-eval harness (vla-eval 0.8.0, `protocol/messages.py`): an envelope with type, payload, seq and
timestamp; arrays and images as maps with text keys."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.serving.codecs import messagepack
from pipelines.serving.codecs.arrays import array_of
from pipelines.serving.refusal import Refusal

PROTOCOL_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of the harness. `seq` is the number that an answer repeats."""

    type: str
    payload: Mapping[str, object]
    seq: int


def unpack(message: bytes) -> Message:
    """Raises Refusal, naming the field."""
    fields = messagepack.unpack(message, _leaf)
    kind, payload, seq = fields.get("type"), fields.get("payload"), fields.get("seq", 0)
    if not isinstance(kind, str):
        raise Refusal(f"type must be text such as 'observation', got {type(kind).__name__}", field="type")
    if not isinstance(payload, dict):
        raise Refusal(f"payload must be a map, got {type(payload).__name__}", field="payload")
    if type(seq) is not int:
        raise Refusal(f"seq must be a whole number, got {type(seq).__name__}", field="seq")
    return Message(type=kind, payload=payload, seq=seq)


def sequence_number(message: bytes) -> int:
    """Of a message that was refused, as far as it can be told; else 0."""
    try:
        seq = messagepack.unpack(message, lambda pairs: pairs).get("seq", 0)
    except Refusal:
        return 0
    return seq if type(seq) is int else 0


def pack(message: Message) -> bytes:
    envelope = {
        "type": message.type,
        "payload": dict(message.payload),
        "seq": message.seq,
        "timestamp": time.time(),
    }
    return messagepack.pack(envelope, _array)


def _leaf(pairs: Mapping[object, object]) -> object:
    if pairs.get("__ndarray__"):
        return array_of(pairs.get("dtype"), pairs.get("shape"), pairs.get("data"))
    if pairs.get("__image__"):
        return _image(pairs)
    return pairs


def _image(pairs: Mapping[object, object]) -> object:
    """Encoded bytes, to be decoded when their header has been looked at; or an array."""
    if pairs.get("format") == "raw":
        return array_of(pairs.get("dtype", "|u1"), pairs.get("shape"), pairs.get("data"))
    if pairs.get("format") not in ("png", "jpeg"):
        raise ValueError(f"an image must be png, jpeg or raw, got {pairs.get('format')!r:.40}")
    if not isinstance(pairs.get("data"), bytes):
        raise ValueError(f"the data of an image must be bytes, got {type(pairs.get('data')).__name__}")
    return pairs["data"]


def _array(array: np.ndarray) -> Mapping[object, object]:
    return {"__ndarray__": True, "data": array.tobytes(), "dtype": array.dtype.str, "shape": list(array.shape)}
