"""Run by `rtp import-encoder` in a process of its own: writes a SavedModel that embeds texts down without TensorFlow.

    python tensorflow_export.py SAVED_MODEL TEXTS.json OUT

OUT gets graph.json, a .npy file for each constant, variable and lookup table, and the model's own vectors of the texts:
encoded one by one (single.npy) and all at once (together.npy). Calls of functions are inlined, so that the graph is one
list of nodes, each after those it reads. What the output does not depend on, such as assertions, is left out. So is an
empty text that the model has no vector for: graph.json names the texts that the vectors are of.

Imports nothing of ours. Exit code 2 and one sentence on stderr, after "refused: ", for a model that cannot be exported.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.function_def_to_graph import function_def_to_graph

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_BRANCHES = ("If", "StatelessIf")
_SIGNATURES = ("serving_default", "default")


class Refused(Exception):
    """What cannot be exported, in one sentence."""


class Exporter:
    """Walks from the output back to the texts and writes every node on the way, those it reads before it."""

    def __init__(self, concrete: Any, out: Path) -> None:
        self.nodes: list[dict[str, Any]] = []
        self._out = out
        self._concrete = concrete
        self._function_of_name = {f.signature.name: f for f in concrete.graph.as_graph_def().library.function}
        self._bodies: list[Any] = []  # kept alive: their tensors are keys
        self._names = {"texts"}
        self._handle_of_table: dict[str, Any] = {}
        self._read: dict[int, Any] = {}  # handle -> what was written of its variable or table

    def output(self) -> str:
        """Export everything that the output depends on and return the output's reference."""
        texts, *captured = self._concrete.inputs
        values: dict[Any, Any] = {texts.ref(): "texts:0"}
        for tensor, value in zip(captured, self._concrete.captured_inputs, strict=True):
            values[tensor.ref()] = value if value.dtype == tf.resource else self._constant("captured", value.numpy())
        return self._value(self._concrete.outputs[0], values, "")

    def _value(self, tensor: Any, values: dict[Any, Any], scope: str) -> Any:
        """The reference of `tensor`, "node:place", or the handle of a variable or table."""
        if tensor.ref() not in values:
            operation = tensor.op
            inputs = [self._value(read, values, scope) for read in operation.inputs]
            if operation.type == "Merge":
                inputs.insert(0, self._value(_condition(operation), values, scope))
            outputs = self._operation(operation, f"{scope}{operation.name}", inputs)
            values.update({one.ref(): output for one, output in zip(operation.outputs, outputs, strict=True)})
        return values[tensor.ref()]

    def _operation(self, operation: Any, name: str, inputs: list[Any]) -> list[Any]:
        """What the outputs of an operation are."""
        kind, attributes = operation.type, operation.node_def.attr
        if kind in _CALLS:
            return self._inlined(attributes["f"].func.name, inputs, f"{name}/")
        if kind in _BRANCHES:
            then, other = (
                self._inlined(attributes[branch].func.name, inputs[1:], f"{name}/{branch}/")
                for branch in ("then_branch", "else_branch")
            )
            pairs = enumerate(zip(other, then, strict=True))
            return [self._add(f"{name}/{place}", "Choose", [inputs[0], *pair])[0] for place, pair in pairs]
        if kind == "Switch":
            return [inputs[0], inputs[0]]
        if kind == "Merge":
            return [*self._add(name, "Choose", inputs), None]
        if kind == "HashTableV2":
            return [self._shared_table(operation)]
        if kind == "Const":
            return [self._constant(name, tf.make_ndarray(attributes["value"].tensor))]
        if any(not isinstance(value, str) for value in inputs) or kind == "Placeholder":
            return self._resource(operation, name, inputs)
        plain = {key: _plain(value) for key, value in attributes.items() if not key.startswith("_")}
        return self._add(name, kind, inputs, plain, len(operation.outputs))

    def _inlined(self, function: str, inputs: list[Any], scope: str) -> list[Any]:
        body = function_def_to_graph(self._function_of_name[function])
        self._bodies.append(body)
        values = {tensor.ref(): value for tensor, value in zip(body.inputs, inputs, strict=True)}
        return [self._value(tensor, values, scope) for tensor in body.outputs]

    def _resource(self, operation: Any, name: str, inputs: list[Any]) -> list[Any]:
        """An operation that reads a variable or a lookup table: their contents become constants."""
        kind, attributes = operation.type, operation.node_def.attr
        handle = inputs[0] if inputs else None
        if kind == "Identity":
            return [handle]
        if kind == "ReadVariableOp":
            return [self._variable(name, handle, attributes["dtype"].type)]
        if kind == "ResourceGather":
            variable = self._variable(name, handle, attributes["dtype"].type)
            axis = self._constant(f"{name}/axis", np.int32(0))
            return self._add(name, "GatherV2", [variable, inputs[1], axis], {"batch_dims": attributes["batch_dims"].i})
        if kind == "LookupTableFindV2":
            table = self._table(name, handle, attributes["Tin"].type, attributes["Tout"].type)
            return self._add(name, "LookupTableFindV2", [*table, *inputs[1:]])
        if kind == "LookupTableSizeV2":
            return [self._constant(name, tf.raw_ops.LookupTableSizeV2(table_handle=handle).numpy())]
        raise Refused(f"the op {kind} ({name}) cannot be converted: it reads or makes a resource")

    def _variable(self, name: str, handle: Any, dtype: int) -> str:
        if id(handle) not in self._read:
            value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.as_dtype(dtype))
            self._read[id(handle)] = self._constant(f"{name}/value", value.numpy())
        return self._read[id(handle)]

    def _table(self, name: str, handle: Any, key: int, value: int) -> tuple[str, str]:
        """References of a table's keys and values."""
        if id(handle) not in self._read:
            keys, values = tf.raw_ops.LookupTableExportV2(
                table_handle=handle, Tkeys=tf.as_dtype(key), Tvalues=tf.as_dtype(value)
            )
            self._read[id(handle)] = (
                self._constant(f"{name}/keys", keys.numpy()),
                self._constant(f"{name}/values", values.numpy()),
            )
        return self._read[id(handle)]

    def _shared_table(self, operation: Any) -> Any:
        """The handle of a table that TensorFlow 1 names inside the graph: it was filled when the model was loaded."""
        attributes = operation.node_def.attr
        types = {key: tf.as_dtype(attributes[key].type) for key in ("key_dtype", "value_dtype")}
        name = attributes["shared_name"].s.decode() or operation.name
        handle = tf.raw_ops.HashTableV2(**types, container=attributes["container"].s.decode(), shared_name=name)
        if not int(tf.raw_ops.LookupTableSizeV2(table_handle=handle)):
            raise Refused(f"the op HashTableV2 ({operation.name}) cannot be converted: the table is empty")
        self._handle_of_table.setdefault(name, handle)
        return self._handle_of_table[name]

    def _constant(self, name: str, value: Any) -> str:
        array = np.asarray(value)
        strings = array.dtype.kind in "OSU"
        if (not strings and array.dtype.kind not in "bif") or array.dtype.name == "bfloat16":
            raise Refused(f"the constant {name} of type {array.dtype.name} cannot be converted")
        tensor = f"t{len(self.nodes)}"
        reference = self._add(name, "Const", [], {"tensor": tensor, "shape": list(array.shape), "strings": strings})[0]
        if not strings:
            np.save(self._out / f"{tensor}.npy", array)
            return reference
        texts = [text.encode() if isinstance(text, str) else bytes(text) for text in array.reshape(-1).tolist()]
        np.save(self._out / f"{tensor}.npy", np.frombuffer(b"".join(texts), np.uint8))
        np.save(self._out / f"{tensor}.ends.npy", np.cumsum([len(text) for text in texts], dtype=np.int64))
        return reference

    def _add(
        self, name: str, kind: str, inputs: list[str], attributes: dict[str, Any] | None = None, num_outputs: int = 1
    ) -> list[str]:
        """Write a node and return the references of its outputs."""
        unique = name if name not in self._names else f"{name}#{len(self.nodes)}"
        self._names.add(unique)
        self.nodes.append({"name": unique, "op": kind, "inputs": inputs, "attributes": attributes or {}})
        return [f"{unique}:{place}" for place in range(num_outputs)]


def _condition(merge: Any) -> Any:
    """What decides between the inputs of a Merge, the first without it and the second with it: TensorFlow 1's
    conditions, other than its loops, keep it beside the Merge under the name pred_id."""
    name = f"{merge.name.rpartition('/')[0]}/pred_id"
    try:
        return merge.graph.get_operation_by_name(name).outputs[0]
    except KeyError:
        raise Refused(f"the op Merge ({merge.name}) cannot be converted: it belongs to no condition") from None


def _plain(value: Any) -> Any:
    """An attribute as JSON has it; types by their names, None for what no op here looks at."""
    match kind := value.WhichOneof("value"):
        case "s":
            return value.s.decode("utf-8", "surrogateescape")
        case "i" | "f" | "b":
            return getattr(value, kind)
        case "type":
            return tf.as_dtype(value.type).name
        case "list":
            if value.list.s:
                return [text.decode("utf-8", "surrogateescape") for text in value.list.s]
            return [*value.list.i, *value.list.f, *value.list.b]
    return None


def _loaded(saved_model: str) -> Any:
    try:
        return tf.saved_model.load(saved_model)
    except Exception as error:  # of many kinds: a damaged file, a missing one, an op of another library
        unknown = re.search(r"Op type not registered '(\w+)'", str(error))
        said = f"the op {unknown[1]} is none of TensorFlow's own" if unknown else str(error).strip().partition("\n")[0]
        raise Refused(f"TensorFlow cannot load it ({said})") from None


def _callable(loaded: Any) -> Any:
    """A function of texts (N,) to one tensor."""
    signatures = getattr(loaded, "signatures", {})
    name = next((name for name in _SIGNATURES if name in signatures), None)
    if callable(loaded):
        call = loaded
    elif name is not None:
        signature = signatures[name]
        arguments = list(signature.structured_input_signature[1])
        if len(arguments) != 1:
            raise Refused(f"its signature {name} takes {len(arguments)} inputs and not texts alone")
        call = lambda texts: signature(**{arguments[0]: texts})  # noqa: E731
    else:
        raise Refused("it cannot be called and has no signature serving_default or default")

    def embed(texts: Any) -> Any:
        output = call(texts)
        if isinstance(output, dict):
            key = "outputs" if "outputs" in output else "default" if "default" in output else None
            if key is None and len(output) != 1:
                raise Refused(f"it gives {len(output)} outputs ({', '.join(output)}) and none called outputs")
            output = output[key] if key else next(iter(output.values()))
        return output

    return embed


def _vectors(concrete: Any, texts: list[str]) -> list[np.ndarray]:
    """Of the texts one by one, and all at once."""
    single = np.concatenate([concrete(tf.constant([text])).numpy() for text in texts])
    return [single, concrete(tf.constant(texts)).numpy()]


def _embedded(concrete: Any, texts: list[str]) -> tuple[list[str], list[np.ndarray]]:
    """The texts and their vectors. An empty text that the model fails on, or has no finite vector for, is left out."""
    try:
        vectors = _vectors(concrete, texts)
        if all(len(part) == len(texts) and np.isfinite(part).all() for part in vectors):
            return texts, vectors
    except (tf.errors.OpError, ValueError, TypeError):  # what is wrong with the other texts is raised below
        pass
    others = [text for text in texts if text]
    return others, _vectors(concrete, others)


def main(saved_model: str, texts_file: str, out: str) -> None:
    """Export the model and its own vectors."""
    texts = json.loads(Path(texts_file).read_text())
    loaded = _loaded(saved_model)  # kept: its variables live no longer than it
    embed = _callable(loaded)
    spec = tf.TensorSpec([None], tf.string, name="texts")
    try:
        concrete = tf.function(embed, input_signature=[spec]).get_concrete_function()
    except (ValueError, TypeError) as error:
        raise Refused(f"it cannot be called with a batch of texts ({str(error).strip().splitlines()[0]})") from None
    exporter = Exporter(concrete, Path(out))
    output = exporter.output()
    texts, (single, together) = _embedded(concrete, texts)
    np.save(Path(out, "single.npy"), single)
    np.save(Path(out, "together.npy"), together)
    graph = {"tensorflow": tf.__version__, "texts": texts, "output": output, "nodes": exporter.nodes}
    Path(out, "graph.json").write_text(json.dumps(graph))


if __name__ == "__main__":
    sys.setrecursionlimit(100_000)  # as deep as the longest chain of ops
    try:
        main(*sys.argv[1:])
    except Refused as refusal:
        print(f"refused: {refusal}", file=sys.stderr)
        sys.exit(2)
