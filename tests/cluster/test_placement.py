"""Room for a training: what is lacking is one sentence, and an autoscaler's nodes are waited for, within a limit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from cluster import placement
from cluster.placement import Actors, Demand, missing, require_room
from cluster.session import RaySession, connect

GPU_NODE, CPU_NODE = {"CPU": 16.0, "GPU": 8.0}, {"CPU": 32.0}
EIGHT = Demand(workers=8, cpus=2, gpus=1)


@pytest.mark.parametrize(
    ("demand", "nodes", "words"),
    [
        (EIGHT, [GPU_NODE], None),
        (EIGHT, [CPU_NODE], "8 workers need 8 GPUs and Ray has 0"),
        (EIGHT, [CPU_NODE, {"CPU": 64.0, "GPU": 4.0}], "8 workers need 8 GPUs and Ray has 4"),
        (Demand(workers=8, cpus=4, gpus=1), [GPU_NODE], "8 workers need 32 CPUs and Ray has 16"),
        (
            Demand(workers=8, cpus=4, gpus=1),
            [GPU_NODE, CPU_NODE],
            "8 workers need 4 CPUs and 1 GPU each on one node, and Ray's nodes have room for 4",
        ),
        (Demand(workers=1, cpus=6), [{"CPU": 4.0}, {"CPU": 4.0}], "need 6 CPUs each on one node"),
        (Demand(workers=8, cpus=2, gpus=1, actors=Actors(per_worker=2, cpus=2)), [GPU_NODE, CPU_NODE], None),
        (
            Demand(workers=8, cpus=2, gpus=1, actors=Actors(per_worker=2, cpus=2)),
            [GPU_NODE],
            "8 workers with 2 remote readers each need 48 CPUs and Ray has 16",
        ),
        (
            Demand(workers=1, cpus=1, actors=Actors(per_worker=1, cpus=6)),
            [{"CPU": 4.0}, {"CPU": 4.0}],
            "need 6 CPUs for each reader, and Ray's nodes have room for 0",
        ),
    ],
)
def test_what_is_missing_is_named(demand: Demand, nodes: list[dict[str, float]], words: str | None) -> None:
    found = missing(demand, nodes)
    assert found is None if words is None else found is not None and words in found


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), max_size=4),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 2),
    st.integers(0, 2),
)
def test_what_is_said_to_fit_can_be_placed(
    sizes: list[tuple[int, int]], workers: int, cpus: int, gpus: int, readers: int
) -> None:
    """One by one: workers, then readers, each on the first node that holds it, those with most room first."""
    demand = Demand(workers=workers, cpus=cpus, gpus=gpus, actors=Actors(per_worker=readers, cpus=2))
    nodes = [{"CPU": float(cpu), "GPU": float(gpu)} for cpu, gpu in sizes]
    if missing(demand, nodes) is not None:
        return
    room = sorted(
        nodes, key=lambda n: min(n["CPU"] // cpus, n["GPU"] // gpus) if gpus else n["CPU"] // cpus, reverse=True
    )
    for bundle in demand.bundles:
        node = next(node for node in room if all(node[kind] >= count for kind, count in bundle.items()))
        for kind, count in bundle.items():
            node[kind] -= count


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    with connect(RaySession(num_cpus=2, dashboard=False)):
        yield


def test_a_cluster_without_room_is_refused_at_once(own_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(placement.WAIT_VARIABLE, raising=False)
    with pytest.raises(ValueError, match=r"2 workers need 2 GPUs and Ray has 0: .* leave out use_gpu; .*-nodes-s 1200"):
        require_room(Demand(workers=2, cpus=1, gpus=1))
    monkeypatch.setenv(placement.WAIT_VARIABLE, "soon")
    with pytest.raises(ValueError, match="RTP_WAIT_FOR_NODES_S=soon is no number of seconds"):
        require_room(Demand(workers=1, cpus=1))


def test_nodes_are_waited_for_until_they_come_or_the_limit_is_over(
    own_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Meanwhile the cluster knows what is asked for, and afterwards it does not."""
    monkeypatch.setattr(placement, "POLL_S", 0.05)
    monkeypatch.setenv(placement.WAIT_VARIABLE, "0.3")
    demand = Demand(workers=3, cpus=2)
    with pytest.raises(ValueError, match=r"3 workers need 6 CPUs and Ray has 2 after 0 s: lower"):
        require_room(demand)
    assert "waiting up to 0 s for nodes: 3 workers need 6 CPUs" in capsys.readouterr().err

    asked: list[Any] = []
    real = placement.node_resources
    come = threading.Event()

    def nodes() -> list[dict[str, float]]:
        pending = [group for group in ray.util.placement_group_table().values() if group["state"] == "PENDING"]
        asked.extend(group["bundles"] for group in pending)
        if asked:
            come.set()
        return real() + ([{"CPU": 4.0}] if come.is_set() else [])

    monkeypatch.setattr(placement, "node_resources", nodes)
    require_room(demand, wait_s=20)
    assert list(asked[0].values()) == [{"CPU": 2.0}] * 3
    states = {group["state"] for group in ray.util.placement_group_table().values()}
    assert states == {"REMOVED"}
