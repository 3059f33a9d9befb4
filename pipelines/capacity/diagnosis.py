"""Findings in, verdicts out: what of a machine, a cluster and an estimate would let a run fail, and how to mend it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.engine import DeepSpeedEngineConfig
from cluster.launch import RayLaunch
from cluster.node_info import PARTS, SHARED_MEMORY, Machine
from cluster.session import MEGABYTE, RaySession
from cluster.zero import STAGES
from pipelines.capacity.estimate import CUDA_CONTEXT, ResourceEstimate
from pipelines.config.experiment import Experiment
from rt_models.robot_model import RobotModelConfig
from rt_models.vision.efficientnet import EfficientNetConfig

GIGABYTE = 10**9


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the diagnosis. A note does not fail it; both a note and a failure say what to do."""

    name: str
    found: str
    verdict: Literal["ok", "note", "fail"] = "ok"
    remedy: str = ""


# --- Machines ---


def machine_checks(machine: Machine) -> Iterator[Check]:
    """Of this machine alone."""
    missing = [name for name in PARTS if machine.versions[name] is None]
    yield Check(
        name="packages",
        found=", ".join(f"{name} {version}" for name, version in machine.versions.items() if version),
        verdict="fail" if missing else "ok",
        remedy=f"{', '.join(missing)} missing: install the project again with its constraints.txt" if missing else "",
    )
    gpus = ", ".join(f"{gpu.name} {size(gpu.memory)}" for gpu in machine.gpus) or "no GPU"
    memory = f"{size(machine.memory)} memory, {size(machine.memory_free)} of it free"
    yield Check(name="devices", found=f"{machine.cpu_cores} CPU cores, {memory}; {gpus}")
    yield _shared_memory(machine)
    yield _auth()


def _shared_memory(machine: Machine) -> Check:
    store = RaySession().object_store_mb * MEGABYTE
    small = machine.shared_memory < store
    return Check(
        name="shared memory",
        found=f"{size(machine.shared_memory)} in {SHARED_MEMORY}, Ray's object store takes {size(store)}",
        verdict="note" if small else "ok",
        remedy=f"Ray will use the disk instead: give {SHARED_MEMORY} {size(store)} (docker run --shm-size)"
        if small
        else "",
    )


def _auth() -> Check:
    """How this process would present itself to a cluster."""
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray/auth_token"))
    where = "RAY_AUTH_TOKEN" if "RAY_AUTH_TOKEN" in os.environ else token_file if token_file.exists() else None
    if mode != "token":
        return Check(name="Ray access", found=f"RAY_AUTH_MODE {mode}")
    found = f"token from {where}" if where else "token, none set: a Ray of our own gets one, a cluster wants its own"
    return Check(name="Ray access", found=found)


def cluster_checks(nodes: Sequence[Machine], here: Machine) -> Iterator[Check]:
    """Of all nodes of a cluster, seen from `here`."""
    devices = [f"{node.host}: {node.cpu_cores} cores, {size(node.memory_free)} free" for node in nodes]
    gpus = sum(len(node.gpus) for node in nodes)
    yield Check(name="nodes", found=f"{len(nodes)} with {gpus} GPUs; {'; '.join(devices)}")
    names = ("python", "ray", "torch", "deepspeed")
    wrong = [
        f"{node.host} has {name} {node.versions[name]} and not {here.versions[name]}"
        for node in nodes
        for name in names
        if node.versions[name] != here.versions[name]
    ]
    yield Check(
        name="versions",
        found="the same on all nodes" if not wrong else "; ".join(wrong),
        verdict="fail" if wrong else "ok",
        remedy="install the same constraints.txt on every node, and restart Ray there" if wrong else "",
    )


def storage_checks(output: str, here: Machine, nodes: Sequence[Machine]) -> Iterator[Check]:
    """Whether the run's folder can be written here, and every node sees the same one."""
    wrong = [here.storage] if here.storage else [f"{n.host}: {n.storage}" for n in nodes if n.storage]
    seen = f"{output} can be written" + (f", and all {len(nodes)} nodes see it" if nodes else "")
    yield Check(
        name="storage",
        found="; ".join(wrong) or seen,
        verdict="fail" if wrong else "ok",
        remedy="give an --output that can be written and that all nodes share, a path or s3:// URL" if wrong else "",
    )


# --- The run ---


def run_checks(
    experiment: Experiment, estimate: ResourceEstimate, machines: Sequence[Machine], free_disk: int | None
) -> Iterator[Check]:
    """Whether the run fits the machines that it would run on."""
    least, most = estimate.workers
    frozen = f", {estimate.frozen / 1e6:.2f} M of them frozen" if estimate.frozen else ""
    yield Check(name="model", found=f"{estimate.parameters / 1e6:.2f} M parameters{frozen}")
    loop, launch = experiment.loop, experiment.launch
    workers = f"{least}" if least == most else f"{least} to {most}"
    product = f"micro-batch {loop.micro_batch} x accumulation {estimate.accumulation} x {most} workers"
    varies = least != most and _synchronised(experiment.model)
    yield Check(
        name="batch",
        found=f"{loop.global_batch} = {product}",
        verdict="note" if varies else "ok",
        remedy="BatchNorm's statistics are those of a micro-batch on every worker, so the loss curve depends on how "
        "many there are: model.backbone.batch_norm.statistics frozen keeps it"
        if varies
        else "",
    )
    epochs = f", {estimate.epochs:.1f} epochs of {estimate.samples_per_epoch}" if estimate.epochs is not None else ""
    yield Check(name="length", found=f"{estimate.steps} steps, {estimate.samples} samples{epochs}; {workers} workers")
    if isinstance(launch, RayLaunch):
        yield from _worker_checks(launch, machines)
    yield _memory_check(experiment, estimate, machines)
    short = free_disk is not None and free_disk < estimate.disk
    yield Check(
        name="checkpoints",
        found=f"{size(estimate.checkpoint)} each, {size(estimate.disk)} for those kept, the best and one being written"
        + (f"; {size(free_disk)} free" if free_disk is not None else ""),
        verdict="fail" if short else "ok",
        remedy="free space, or lower loop.keep_last, or give another --output" if short else "",
    )


def _synchronised(model: RobotModelConfig) -> bool:
    backbone = getattr(model, "backbone", None)
    return isinstance(backbone, EfficientNetConfig) and backbone.batch_norm.statistics == "synchronised"


def _worker_checks(launch: RayLaunch, machines: Sequence[Machine]) -> Iterator[Check]:
    gpus = sum(len(machine.gpus) for machine in machines)
    if launch.use_gpu:
        short = gpus < launch.least
        yield Check(
            name="workers",
            found=f"{launch.least} workers want a GPU each, {gpus} are there",
            verdict="fail" if short else "ok",
            remedy="give the --address of a cluster that has them, a lower launch.num_workers, or --launch.no-use-gpu"
            if short
            else "",
        )
        return
    cores, wanted = sum(machine.cpu_cores for machine in machines), launch.least * launch.cpus_per_worker
    yield Check(
        name="workers",
        found=f"{launch.least} workers want {wanted} CPU cores, {cores} are there",
        verdict="note" if cores < wanted else "ok",
        remedy="they will share cores and take turns: lower launch.num_workers" if cores < wanted else "",
    )
    if gpus:
        remedy = "add --launch.use-gpu to train on them"
        yield Check(name="GPUs", found=f"{gpus} are there and would not be used", verdict="note", remedy=remedy)


def _memory_check(experiment: Experiment, estimate: ResourceEstimate, machines: Sequence[Machine]) -> Check:
    room = worker_room(experiment, estimate, machines)
    wanted = estimate.needed(estimate.stage)
    without = "" if estimate.activations is not None else ", activations not counted"
    there = "no device to compare with" if room is None else f"{size(room)} are there"
    found = f"ZeRO-{estimate.stage} wants {size(wanted)} a worker{without}; {there}"
    if room is None or wanted <= room:
        return Check(name="memory", found=found)
    fitting = [stage for stage in STAGES if stage > estimate.stage and estimate.needed(stage) <= room]
    engine = "" if isinstance(experiment.engine, DeepSpeedEngineConfig) else "--engine DeepSpeedEngineConfig "
    smaller = "lower loop.micro_batch, or use more workers under ZeRO-3, which share the training state"
    remedy = f"{engine}--engine.zero.stage {fitting[0]} fits" if fitting else smaller
    return Check(name="memory", found=found, verdict="fail", remedy=remedy)


def trains_on_gpu(experiment: Experiment, machines: Sequence[Machine]) -> bool:
    launch = experiment.launch
    return launch.use_gpu if isinstance(launch, RayLaunch) else any(machine.gpus for machine in machines)


def worker_room(experiment: Experiment, estimate: ResourceEstimate, machines: Sequence[Machine]) -> int | None:
    """Bytes that one worker may take: of the smallest GPU, or its share of host memory. None without a GPU to ask."""
    launch = experiment.launch
    gpus = [gpu.memory for machine in machines for gpu in machine.gpus]
    if isinstance(launch, RayLaunch) and launch.use_gpu:
        return min(gpus, default=None)
    if gpus and not isinstance(launch, RayLaunch):
        return gpus[0]
    per_node = -(-estimate.workers[0] // len(machines))
    return min(machine.memory_free for machine in machines) // per_node


def memory_table(estimate: ResourceEstimate) -> list[str]:
    """Lines to read: what a worker holds under each stage."""
    activations = "not counted" if estimate.activations is None else size(estimate.activations)
    process, loader = size(estimate.process), size(estimate.loader)
    lines = [
        f"memory of one of {estimate.workers[0]} workers, estimated:",
        f"  its process {process}, its loader {loader} at most (of the machine, also with a GPU)",
        f"  activations of a micro-batch {activations}, at their most; batches on the device {size(estimate.batches)}",
    ]
    for stage in STAGES:
        chosen = "  <- this run" if stage == estimate.stage else ""
        held = f"training state {size(estimate.state[stage])}, {size(estimate.temporary[stage])} more while it updates"
        lines.append(f"  ZeRO-{stage}: {held}; together {size(estimate.worker_bytes(stage))} at most{chosen}")
    kept = "that malloc keeps after some hundred steps, in holes that batches of other sizes left"
    beside = f"{size(CUDA_CONTEXT)} for CUDA itself" if estimate.on_gpu else f"{size(estimate.kept)} {kept}"
    return [*lines, f"  beside that {beside}; the work space of single kernels is not counted"]


def size(count: int) -> str:
    """Bytes to read."""
    return f"{count / GIGABYTE:.1f} GB" if count >= GIGABYTE else f"{count / MEGABYTE:.1f} MB"
