"""Ranks of a node lie together: on two nodes of two cores, four workers are ranks 0, 1 of one and 2, 3 of the other."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

import pytest

from cluster.context import WorkerContext
from cluster.launch import RayLaunch, launch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
def test_ranks_are_numbered_node_by_node(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from ray_nodes import running_nodes

    def places(
        context: WorkerContext, config: dict[str, object]
    ) -> dict[str, str]:  # in here: its code travels with it
        import ray

        mine = (ray.get_runtime_context().get_node_id(), context.local_rank)
        return {str(rank): f"{node} {local}" for rank, (node, local) in enumerate(context.gather(mine))}

    with patch.dict(os.environ), running_nodes(short_path, 2, cpus=2) as nodes:
        found = launch(places, {}, RayLaunch(num_workers=4, address=nodes.address))
    order = [str(found[str(rank)]).split() for rank in range(4)]
    assert order[0][0] == order[1][0] != order[2][0] == order[3][0]
    assert [local for _, local in order] == ["0", "1", "0", "1"]
