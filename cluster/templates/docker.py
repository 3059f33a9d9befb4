"""The Dockerfile of this project. The one at the root of the repository is this text (a test compares them)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cluster.templates.node_groups import NodeGroups

_DOCKERFILE = """\
# rt-pipelines on Python 3.11, for GPU and CPU nodes, and for the head, alike. In a checkout of the project:
#     docker build --tag {image} .
#
# No CUDA base image: torch's wheels from PyPI bring the CUDA libraries, and the optimizers are torch's own, so that
# nothing is compiled with nvcc. A GPU node needs NVIDIA's driver and container toolkit (docker run --gpus all).
FROM python:3.11-slim-bookworm

# git for the revision of a checkout in the container; g++ for DeepSpeed's optional kernels; wget for KubeRay's health
# checks; rsync and ssh for `ray up`, whose head starts the other nodes. Debian keeps one version of each at a time, so
# that a pinned one could not be installed a week later.
# hadolint ignore=DL3008
RUN apt-get update \\
    && apt-get install --yes --no-install-recommends git g++ openssh-client rsync wget \\
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/rt-pipelines
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY rt_models rt_models
COPY preprocessing preprocessing
COPY cluster cluster
COPY tuning tuning
COPY pipelines pipelines
COPY examples examples
RUN pip install --no-cache-dir --constraint constraints.txt '.[gcs]'

WORKDIR /work
# No entry point: KubeRay, `ray up` and Slurm start `ray` and a shell in it.
CMD ["rtp", "--help"]
"""
DEFAULT_TAG = "rt-pipelines:0.1.0"


@dataclass(frozen=True, kw_only=True)
class Docker(NodeGroups):
    """The Dockerfile of an image for all nodes. The numbers of nodes change nothing in it."""

    file_name: ClassVar[str] = "Dockerfile"

    def render(self) -> str:
        return _DOCKERFILE.format(image=self.image or DEFAULT_TAG)
