"""A cluster that loses its head in mid-training: the driver ends, and one command on a new cluster goes on exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from cluster.session import RaySession, connect

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_one_command_goes_on_where_the_head_died(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks/head_dies.py"), "--steps", "60"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    results = json.loads(done.stdout.splitlines()[-1])["results"]
    assert results["complaints"] == [] and results["driver"]["exit_code"] != 0 and results["reached"] >= 30


@pytest.mark.slow
def test_with_a_store_for_its_state_the_rest_of_the_cluster_outlives_the_head(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a Redis on Kubernetes, of which Ray's RocksDB is the nearest thing here."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    from ray_nodes import running_nodes, until

    class Counter:  # in here, so that its code travels with it
        def __init__(self) -> None:
            self.count = 0

        def next(self) -> int:
            self.count += 1
            return self.count

    lasting = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(short_path / "gcs")}
    with patch.dict(os.environ, lasting), running_nodes(short_path, 2) as nodes:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        with connect(RaySession(address=nodes.address, log_to_driver=False)):
            (second,) = {node["NodeID"] for node in ray.nodes()} - {ray.get_runtime_context().get_node_id()}
            place = NodeAffinitySchedulingStrategy(second, soft=False)
            actor: Any = ray.remote(Counter)
            counter = actor.options(name="counter", namespace="a", lifetime="detached", scheduling_strategy=place)
            assert ray.get(counter.remote().next.remote()) == 1
        nodes.kill_head()
        nodes.start_head()
        until(nodes.answers, "the new head does not answer")
        with connect(RaySession(address=nodes.address, log_to_driver=False)):
            assert second in {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            assert ray.get(ray.get_actor("counter", namespace="a").next.remote(), timeout=60) == 2
