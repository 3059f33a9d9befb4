"""What all kinds of cluster files have in common: the groups of nodes, the image, and what may not stand in a file."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml

GIBIBYTE = 2**30
IDLE_MINUTES = 10
WAIT_S = 1200
"""How long a command on a cluster with an autoscaler waits for its nodes: a machine with eight GPUs takes 5 to 10
minutes to start, and to pull an image of some GB another few."""

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class NodeGroups:
    """A head without GPUs, where commands start, and two groups of nodes: with GPUs and without."""

    name: str = "rt-pipelines"
    """Of the cluster: lower-case letters, digits and dashes."""
    image: str | None = None
    """Container image of all nodes, as REGISTRY/NAME:TAG; default: Ray's own of the version installed here, for
    commands that are sent with rtp submit --install."""
    gpu_nodes: int = 1
    """Most nodes with GPUs."""
    gpus: int = 8
    """GPUs of each of them."""
    cpu_nodes: int = 0
    """Most nodes without GPUs, which preprocess, and read for the GPU nodes under --loader.where remote."""
    min_gpu_nodes: int = 0
    """GPU nodes that are kept when there is nothing to do."""
    min_cpu_nodes: int = 0
    """CPU nodes that are kept when there is nothing to do."""
    gpu_node_cpus: int = 64
    """CPU cores of each GPU node."""
    cpu_node_cpus: int = 16
    """CPU cores of each CPU node."""
    shared_memory_gb: int = 32
    """Of each GPU or CPU node, in GiB (2^30 bytes): /dev/shm, for Ray's object store and NCCL."""

    output: str | None = None
    """File to write, or a folder for it; default: standard output. A file that says something else is kept."""

    file_name: ClassVar[str]
    """What the file is called if --output names a folder."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"--name {self.name!r}: give up to 40 lower-case letters, digits and dashes, first a letter"
            )
        for field in ("gpu_nodes", "cpu_nodes", "min_gpu_nodes", "min_cpu_nodes"):
            if getattr(self, field) < 0:
                raise ValueError(f"{_flag(field)} must be 0 or more, got {getattr(self, field)}")
        for field in ("gpus", "gpu_node_cpus", "cpu_node_cpus", "shared_memory_gb"):
            if getattr(self, field) < 1:
                raise ValueError(f"{_flag(field)} must be at least 1, got {getattr(self, field)}")
        if self.gpu_nodes + self.cpu_nodes == 0:
            raise ValueError("a cluster needs nodes beside its head: give --gpu-nodes or --cpu-nodes")
        for group in ("gpu_nodes", "cpu_nodes"):
            if getattr(self, f"min_{group}") > getattr(self, group):
                raise ValueError(f"{_flag(f'min_{group}')} is above {_flag(group)}, which is {getattr(self, group)}")
        if self.image is not None:
            _require_pinned(self.image)

    def render(self) -> str:
        """The file's text."""
        raise NotImplementedError

    @property
    def chosen_image(self) -> str:
        """The image; Ray's own, of this Python and this Ray, if none was given."""
        version = f"py{sys.version_info.major}{sys.version_info.minor}"
        return self.image or f"rayproject/ray:{ray_version()}-{version}"

    @property
    def object_store_bytes(self) -> int:
        """Of each node that is not the head. NCCL and torch get the rest of the shared memory."""
        return self.shared_memory_gb * GIBIBYTE * 9 // 10


def ray_version() -> str:
    return importlib.metadata.version("ray")


def project_version() -> str:
    """Of this project; that of a source tree which is not installed counts as 0.0.0."""
    try:
        return importlib.metadata.version("rt-pipelines")
    except importlib.metadata.PackageNotFoundError:
        return "0.0.0"


def as_yaml(document: Mapping[str, Any], comment: Sequence[str]) -> str:
    """A YAML file with its comment lines first."""
    head = "".join(f"# {line}\n" if line else "#\n" for line in comment)
    return head + yaml.safe_dump(dict(document), sort_keys=False, width=118)


def _require_pinned(image: str) -> None:
    if "@" in image.partition("@sha256:")[0]:
        raise ValueError("--image has a user or password before an @, which the file would show: docker login keeps it")
    if not re.fullmatch(r"[\w.:/@-]+", image):
        raise ValueError(f"--image {image!r} is no name of an image: give REGISTRY/NAME:TAG")
    tag = image.rpartition("/")[2].partition(":")[2]
    if "@sha256:" not in image and (not tag or tag == "latest"):
        raise ValueError(
            f"--image {image} names no version, so that nodes started later could get another one: give NAME:TAG"
        )


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"
