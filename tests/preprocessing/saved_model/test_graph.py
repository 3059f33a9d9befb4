"""The graph: what is refused before it runs, choices that compute one side alone, nothing kept longer than needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from preprocessing.saved_model.graph import Graph
from tests.support.imported_encoders import NODES, constant


def node(name: str, op: str, *inputs: str, **attributes: Any) -> dict[str, Any]:
    return {"name": name, "op": op, "inputs": list(inputs), "attributes": attributes}


def test_an_op_without_an_implementation_is_named() -> None:
    nodes = [node("encoder/lstm", "CudnnRNN", "texts:0")]
    with pytest.raises(ValueError, match=r"the op CudnnRNN \(encoder/lstm\) cannot be converted"):
        Graph({"output": "encoder/lstm:0", "nodes": nodes}, {})


@pytest.mark.parametrize(
    "description",
    [
        {
            "output": "length:0",
            "nodes": [node("length", "StringLength", "later:0"), node("later", "Identity", "texts:0")],
        },
        {"output": "length:0", "nodes": [node("length", "StringLength", "length:0")]},
        {"output": "absent:0", "nodes": []},
        {"output": "table:0", "nodes": NODES},
        {"nodes": []},
        {"output": "x:0", "nodes": [{"name": "x"}]},
        {"output": "x:0", "nodes": [node("x", "LookupTableFindV2", "texts:0", "texts:0", "texts:0", "texts:0")]},
        [],
    ],
)
def test_a_damaged_graph_is_refused_before_it_runs(description: Any) -> None:
    with pytest.raises(ValueError, match="its graph is damaged"):
        Graph(description, {})


def test_a_choice_computes_one_side() -> None:
    numbers = {"t0": np.array(3, np.int32), "t1": np.array([0, 1, 2], np.int32)}
    nodes = [
        constant("three", "t0"),
        constant("shape", "t1", 3),
        node("count", "Size", "texts:0"),
        node("many", "Greater", "count:0", "three:0"),
        node("fails", "Reshape", "texts:0", "shape:0"),
        node("length", "StringLength", "texts:0"),
        node("chosen", "Choose", "many:0", "length:0", "fails:0"),
    ]
    graph = Graph({"output": "chosen:0", "nodes": nodes}, numbers)
    assert graph.run(["a", "bc"]).tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"the op Reshape \(fails\) of the imported encoder fails"):
        graph.run(["a"] * 4)


def test_tables_are_looked_up_by_bytes() -> None:
    tensors = {
        "t0": np.frombuffer(b"ab\xc3\xb6", np.uint8),
        "t0.ends": np.array([1, 2, 4]),
        "t1": np.array([10, 11, 12]),
        "t2": np.array(-1),
    }
    nodes = [
        {"name": "keys", "op": "Const", "inputs": [], "attributes": {"tensor": "t0", "shape": [3], "strings": True}},
        constant("values", "t1", 3),
        constant("absent", "t2"),
        node("found", "LookupTableFindV2", "keys:0", "values:0", "texts:0", "absent:0"),
    ]
    graph = Graph({"output": "found:0", "nodes": nodes}, tensors)
    assert graph.run(["b", "ö", "c", "a"]).tolist() == [11, 12, -1, 10]
