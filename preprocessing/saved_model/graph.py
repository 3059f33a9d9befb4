"""A TensorFlow graph of texts to vectors, as a list of nodes and their constants, run by NumPy.

Nodes stand after those they read. References are "node:place"; the node "texts" is the input. `Choose` is what became
of TensorFlow's If: its inputs are the condition and what it is without and with it, of which only one is computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from preprocessing.saved_model.gather_ops import GATHER_OPS
from preprocessing.saved_model.number_ops import NUMBER_OPS
from preprocessing.saved_model.op import Op, texts
from preprocessing.saved_model.shape_ops import SHAPE_OPS
from preprocessing.saved_model.text_ops import TEXT_OPS

OPS: dict[str, Op] = {**NUMBER_OPS, **SHAPE_OPS, **GATHER_OPS, **TEXT_OPS}
_CONSTANT, _CHOOSE, _FIND, _INPUT = "Const", "Choose", "LookupTableFindV2", "texts"


@dataclass(frozen=True, kw_only=True)
class Node:
    """One op of the graph; `inputs` are (node, place)."""

    op: str
    inputs: tuple[tuple[str, int], ...]
    attributes: dict[str, Any]


class Graph:
    """`description` is graph.json of the export and `tensors` the arrays that its constants name.

    Raises ValueError for a graph that is malformed or holds an op without an implementation here.
    """

    def __init__(self, description: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
        self._nodes: dict[str, Node] = {}
        self._constants: dict[str, tuple[np.ndarray, ...]] = {}
        try:
            for entry in description["nodes"]:
                self._take(entry, tensors)
            self._output = _reference(description["output"])
            self._require(self._output[0])
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"its graph is damaged ({type(error).__name__}: {error})") from None
        self._num_readers = Counter(name for node in self._nodes.values() for name, _ in node.inputs)
        self._num_readers[self._output[0]] += 1

    def run(self, given: Sequence[str]) -> np.ndarray:
        """The graph's output for these texts."""
        values = {**self._constants, _INPUT: (texts([text.encode() for text in given]),)}
        left = Counter(self._num_readers)
        name, place = self._output
        waiting = [name]
        with np.errstate(all="ignore"):
            while waiting:
                name = waiting[-1]
                if name in values:
                    waiting.pop()
                    continue
                node = self._nodes[name]
                missing = [read for read, _ in _needed(node, values) if read not in values]
                waiting += missing
                if not missing:
                    values[name] = self._computed(name, node, values)
                    for read, _ in node.inputs:
                        left[read] -= 1
                        if not left[read] and read not in self._constants:
                            values.pop(read, None)
        return values[self._output[0]][place]

    def _computed(self, name: str, node: Node, values: Mapping[str, Sequence[np.ndarray]]) -> Sequence[np.ndarray]:
        inputs = [values[read][place] for read, place in _needed(node, values)]
        if node.op == _CHOOSE:
            return (inputs[1],)
        try:
            output = OPS[node.op](node.attributes, *inputs)
        except (ValueError, TypeError, IndexError, KeyError, ArithmeticError, MemoryError) as error:
            raise ValueError(f"the op {node.op} ({name}) of the imported encoder fails: {error}") from None
        return output if isinstance(output, list | tuple) else (np.asarray(output),)

    def _take(self, entry: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
        """Check one node and keep it."""
        name, op, attributes = entry["name"], entry["op"], dict(entry["attributes"])
        if op == _CONSTANT:
            self._constants[name] = (_constant(attributes, tensors),)
            return
        if op not in OPS and op != _CHOOSE:
            raise ValueError(f"the op {op} ({name}) cannot be converted: rt-pipelines has no implementation of it")
        inputs = tuple(_reference(read) for read in entry["inputs"])
        for read, _ in inputs:
            self._require(read)
        if op == _FIND:
            keys, found = (self._constants[read][place] for read, place in inputs[:2])
            attributes["table"] = dict(zip(keys.tolist(), found.tolist(), strict=True))
        self._nodes[name] = Node(op=op, inputs=inputs, attributes=attributes)

    def _require(self, name: str) -> None:
        if name != _INPUT and name not in self._nodes and name not in self._constants:
            raise ValueError(f"its graph is damaged (a node reads {name!r}, which does not stand before it)")


def _needed(node: Node, values: Mapping[str, Sequence[np.ndarray]]) -> tuple[tuple[str, int], ...]:
    """What a node reads: all inputs; of a choice the condition, and once that is known the chosen one."""
    if node.op != _CHOOSE:
        return node.inputs
    (name, place), *branches = node.inputs
    if name not in values:
        return node.inputs[:1]
    return node.inputs[0], branches[bool(values[name][place])]


def _reference(text: str) -> tuple[str, int]:
    name, _, place = text.rpartition(":")
    return name, int(place)


def _constant(attributes: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    array = tensors[attributes["tensor"]]
    if not attributes["strings"]:
        return array.reshape(attributes["shape"])
    ends = tensors[f"{attributes['tensor']}.ends"].tolist()
    data = array.tobytes()
    return texts([data[first:last] for first, last in zip([0, *ends[:-1]], ends, strict=False)], attributes["shape"])
