"""Counts the graphs that torch.compile makes of a model's blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend

from rt_models.blocks import compiled


def count_graphs(monkeypatch: pytest.MonkeyPatch, backend: str) -> list[int]:
    """From now on all blocks are compiled with `backend`; the number of operations of each graph, as they are made."""
    found: list[int] = []
    compile_graph, make = lookup_backend(backend), compiled._program

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        found.append(len(graph.graph.nodes))
        return compile_graph(graph, inputs)

    monkeypatch.setattr(compiled, "_program", lambda _: make(counting))  # type: ignore[arg-type]
    return found
