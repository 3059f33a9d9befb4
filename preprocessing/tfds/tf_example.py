"""tf.train.Example messages, read with the protobuf library and without TensorFlow.

An Example maps a name to a list of bytes, float32 or int64. The message types follow tensorflow/tensorflow v2.21.0
`tensorflow/core/example/example.proto` and `feature.proto`. They have a descriptor pool of their own, so that they do
not collide with the types that TensorFlow or tensorflow_datasets register in the same process. tensorflow_datasets has
these types too, but importing it takes half a second.

protobuf skips a value of another wire type than its list has. The list is then shorter than its feature's shape, and
`features.Feature.read` refuses the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

_FLOATS = b"\x0a"  # before the size of a packed list: field 1, of several bytes
_DTYPES = {"bytes_list": "bytes", "float_list": "float32", "int64_list": "int64"}
_DESCRIPTION = """
name: "example.proto" package: "tensorflow" syntax: "proto3"
message_type { name: "BytesList" field { name: "value" number: 1 type: TYPE_BYTES label: LABEL_REPEATED } }
message_type { name: "FloatList" field { name: "value" number: 1 type: TYPE_FLOAT label: LABEL_REPEATED } }
message_type { name: "Int64List" field { name: "value" number: 1 type: TYPE_INT64 label: LABEL_REPEATED } }
message_type {
  name: "Feature" oneof_decl { name: "kind" }
  field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: ".tensorflow.BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 type: TYPE_MESSAGE type_name: ".tensorflow.FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 type: TYPE_MESSAGE type_name: ".tensorflow.Int64List" oneof_index: 0 }
}
message_type {
  name: "Features"
  field {
    name: "feature" number: 1 type: TYPE_MESSAGE label: LABEL_REPEATED type_name: ".tensorflow.Features.FeatureEntry"
  }
  nested_type {
    name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING }
    field { name: "value" number: 2 type: TYPE_MESSAGE type_name: ".tensorflow.Feature" }
  }
}
message_type {
  name: "Example"
  field { name: "features" number: 1 type: TYPE_MESSAGE type_name: ".tensorflow.Features" }
}
"""


def _example_type() -> Any:
    """The class of Example messages, which protobuf makes from their description."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_DESCRIPTION, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


_Message = _example_type()


@dataclass(frozen=True, kw_only=True)
class Example:
    """The lists of one message by name. Reading a list of another type than asked for raises ValueError."""

    lists: Any  # protobuf's map from name to Feature

    def __contains__(self, name: str) -> bool:
        return name in self.lists

    def floats(self, name: str) -> np.ndarray:
        """float32 (N,). Taken from the list as protobuf packs it, with the numbers side by side: one by one they are
        Python objects, which takes 30 times as long."""
        values = self._values(name, "float_list")
        begins = _FLOATS + _varint(4 * len(values))
        packed = self.lists[name].float_list.SerializeToString() if len(values) else b""
        if not packed.startswith(begins):
            return np.fromiter(values, np.float32, len(values))
        return np.frombuffer(packed, "<f4", len(values), len(begins)).astype(np.float32)

    def ints(self, name: str) -> np.ndarray:
        """int64 (N,)."""
        values = self._values(name, "int64_list")
        return np.fromiter(values, np.int64, len(values))

    def bytes(self, name: str) -> list[bytes]:
        return list(self._values(name, "bytes_list"))

    def _values(self, name: str, kind: Literal["bytes_list", "float_list", "int64_list"]) -> Sequence[Any]:
        if name not in self.lists:  # looking a name up in protobuf's map would add it
            raise KeyError(name)
        feature = self.lists[name]
        actual = feature.WhichOneof("kind")
        if actual is None:  # a Feature with nothing set is an empty list of any type
            return ()
        if actual != kind:
            raise ValueError(f"{name} is a list of {_DTYPES[actual]}, expected {_DTYPES[kind]}")
        return getattr(feature, kind).value


def _varint(number: int) -> bytes:
    """A size as protobuf writes it: seven bits a byte, the lowest first."""
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])


def parse(payload: bytes) -> Example:
    """Read a serialized Example. Raises ValueError if the message is malformed."""
    try:
        return Example(lists=_Message.FromString(payload).features.feature)
    except DecodeError:
        raise ValueError(f"its {len(payload)} bytes are no tf.train.Example message") from None
