"""Whether a cluster has room for a training's workers and for the actors that they start, and waiting until it has.

Ray Train asks for a placement group of strategy PACK, which Ray puts onto few nodes where it can, and numbers the ranks
node by node, on a node by GPU: so says the code of Ray 2.60 (worker_group.py, _assign_worker_ranks). On several GPU
nodes it is untested. The driver asks for no GPU, and Ray's workers without one see none (session.GPUS_HIDDEN).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

POLL_S = 2.0
WAIT_VARIABLE = "RTP_WAIT_FOR_NODES_S"


@dataclass(frozen=True, kw_only=True)
class Actors:
    """The actors that each worker starts for itself, beside the resources of its own."""

    per_worker: int = 0
    cpus: int = 1
    """CPU cores of each."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """The least that a training needs: `workers` alike, each within one node."""

    workers: int
    cpus: int
    """CPU cores of each worker."""
    gpus: int = 0
    """GPUs of each worker."""
    actors: Actors = Actors()

    @property
    def total(self) -> dict[str, int]:
        own = self.cpus + self.actors.per_worker * self.actors.cpus
        return {"CPU": self.workers * own, "GPU": self.workers * self.gpus}

    @property
    def bundles(self) -> list[dict[str, float]]:
        """Of each worker and each actor, as a placement group asks for them."""
        worker = {"CPU": float(self.cpus), **({"GPU": float(self.gpus)} if self.gpus else {})}
        actor = {"CPU": float(self.actors.cpus)}
        return [dict(worker) for _ in range(self.workers)] + [
            dict(actor) for _ in range(self.workers * self.actors.per_worker)
        ]


def missing(demand: Demand, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """A clause on what `nodes` (the resources of each) lack for the demand; None if they hold it.

    Workers are tried where they fit most often first, which is where Ray's packing puts them.
    """
    total = {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
    workers = f"{demand.workers} workers"
    if demand.actors.per_worker:
        workers += f" with {demand.actors.per_worker} remote readers each"
    for kind, count in demand.total.items():
        if total[kind] < count:
            return f"{workers} need {count} {kind}s and Ray has {total[kind]:.0f}"
    left, unplaced = [], demand.workers
    for node in sorted(nodes, key=lambda node: _fits(demand, node), reverse=True):
        here = min(_fits(demand, node), unplaced)
        unplaced -= here
        left.append(node.get("CPU", 0) - here * demand.cpus)
    if unplaced:
        each = f"{demand.cpus} CPUs" + (f" and {demand.gpus} GPU" if demand.gpus else "")
        return f"{workers} need {each} each on one node, and Ray's nodes have room for {demand.workers - unplaced}"
    actors = sum(int(cpus // demand.actors.cpus) for cpus in left)
    if actors < demand.workers * demand.actors.per_worker:
        return (
            f"{workers} need {demand.actors.cpus} CPUs for each reader, and Ray's nodes have room for {actors} of them"
        )
    return None


def require_room(demand: Demand, *, wait_s: float | None = None) -> None:
    """Raise ValueError if the cluster does not hold the demand: Ray would wait for it for ever.

    wait_s: how long to wait for more nodes; None: what RTP_WAIT_FOR_NODES_S says, else not at all. Meanwhile a
    placement group asks for the resources, which an autoscaler answers with nodes.
    """
    limit_s = _waiting_time() if wait_s is None else wait_s
    lacking = missing(demand, node_resources())
    if lacking is not None and limit_s > 0:
        lacking = _wait(demand, lacking, limit_s)
    if lacking is None:
        return
    remedy = "lower num_workers or cpus_per_worker"
    if demand.actors.per_worker:
        remedy += " or loader.remote_readers"
    if demand.gpus:
        remedy += ", or leave out use_gpu"
    waited = f" after {limit_s:.0f} s" if limit_s > 0 else ""
    wait = "" if limit_s > 0 else "; for the nodes of an autoscaler, --launch.wait-for-nodes-s 1200 waits"
    raise ValueError(f"{lacking}{waited}: {remedy}{wait}")


def node_resources() -> list[dict[str, float]]:
    """The resources of each living node, whoever uses them."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _fits(demand: Demand, node: Mapping[str, float]) -> int:
    """Workers that a node holds."""
    by_cpu = node.get("CPU", 0) // demand.cpus
    return int(min(by_cpu, node.get("GPU", 0) // demand.gpus) if demand.gpus else by_cpu)


def _wait(demand: Demand, lacking: str, limit_s: float) -> str | None:
    """What is still lacking when nodes have come, or the limit is over."""
    from ray.util.placement_group import placement_group, remove_placement_group

    _say(f"waiting up to {limit_s:.0f} s for nodes: {lacking}")
    group = placement_group(demand.bundles, strategy="PACK")
    ends = time.monotonic() + limit_s
    said = lacking
    try:
        while (still := missing(demand, node_resources())) is not None and time.monotonic() < ends:
            if still != said:
                _say(f"waiting for nodes: {still}")
                said = still
            time.sleep(min(POLL_S, max(ends - time.monotonic(), 0.0)))
        return still
    finally:
        remove_placement_group(group)


def _waiting_time() -> float:
    text = os.environ.get(WAIT_VARIABLE, "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise ValueError(f"{WAIT_VARIABLE}={text} is no number of seconds: set it to one, such as 1200, or unset it")
    return seconds


def _say(sentence: str) -> None:
    print(f"rtp: {sentence}", file=sys.stderr, flush=True)
