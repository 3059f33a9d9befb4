"""Cluster files of Ray's own launcher: `ray up FILE` starts a head on AWS or Google Cloud, which starts the others.

Ray's token is on: the file says where it lies, not what it is. Only SSH is open from outside; `ray dashboard FILE`
forwards the dashboard to this machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from cluster.templates.node_groups import IDLE_MINUTES, WAIT_S, NodeGroups, as_yaml

TOKEN_FILE = "~/.ray/auth_token"
_PROFILE = re.compile(r"[\w+=,.@-]{1,128}|arn:aws[\w-]*:iam::\d+:instance-profile/[\w+=,.@/-]+", re.ASCII)  # IAM's
_PORTS = "--port=6379 --object-manager-port=8076"
_ENVIRONMENT = f"export RAY_AUTH_MODE=token RTP_WAIT_FOR_NODES_S={WAIT_S}; ulimit -n 65536;"


@dataclass(frozen=True, kw_only=True)
class _RayUp(NodeGroups):
    """What the two clouds have in common."""

    head_instance: str = ""
    """Instance or machine type of the head, without GPUs."""
    gpu_instance: str | None = None
    """Instance or machine type of the GPU nodes, with the GPUs built in; default: one that has --gpus of them."""
    cpu_instance: str = ""
    """Instance or machine type of the CPU nodes; --cpu-node-cpus must be what it has."""
    disk_gb: int = 500
    """Boot disk of each node, for the image and Ray's files."""

    provider: ClassVar[str]
    instances_by_gpus: ClassVar[Mapping[int, str]]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.disk_gb < 100:
            raise ValueError(
                f"--disk-gb must be at least 100, which the image and Ray's files need, got {self.disk_gb}"
            )
        if self.gpu_instance is None and self.gpu_nodes and self.gpus not in self.instances_by_gpus:
            known = ", ".join(map(str, self.instances_by_gpus))
            raise ValueError(
                f"--gpus {self.gpus}: name the machine with --gpu-instance (there is a default for {known})"
            )

    def render(self) -> str:
        comment = [
            f"A Ray cluster on {self.provider}. On your machine, once:",
            "    ray get-auth-token --generate",
            f"    ray up {self.file_name} --no-config-cache",
            f"    ray dashboard {self.file_name}     # leaves http://127.0.0.1:8265 open, for rtp submit",
            f"and in the end: ray down {self.file_name}",
            *self._notes(),
        ]
        return as_yaml(self._document(), comment)

    def _document(self) -> dict[str, Any]:
        return {
            "cluster_name": self.name,
            "max_workers": self.gpu_nodes + self.cpu_nodes,
            "idle_timeout_minutes": IDLE_MINUTES,
            "provider": self._provider(),
            "auth": {"ssh_user": "ubuntu"},
            "docker": {
                "image": self.chosen_image,
                "container_name": self.name,
                "pull_before_run": True,
                "run_options": ["--ulimit nofile=65536:65536"],
            },
            "file_mounts": {TOKEN_FILE: TOKEN_FILE},
            "head_node_type": "head",
            "available_node_types": {
                "head": {
                    "resources": {"CPU": 0, "GPU": 0},
                    "node_config": self._node(self.head_instance, is_head=True),
                },
                **self._groups(),
            },
            **self._commands(),
        }

    def _groups(self) -> dict[str, Any]:
        groups: dict[str, Any] = {}
        shared = f"--shm-size={self.shared_memory_gb}g"
        if self.gpu_nodes:
            groups["gpu"] = {
                "min_workers": self.min_gpu_nodes,
                "max_workers": self.gpu_nodes,
                "resources": {"CPU": self.gpu_node_cpus, "GPU": self.gpus},
                "node_config": self._node(self._gpu_instance(), has_gpus=True),
                "docker": {"worker_run_options": [shared, "--gpus=all"]},
            }
        if self.cpu_nodes:
            groups["cpu"] = {
                "min_workers": self.min_cpu_nodes,
                "max_workers": self.cpu_nodes,
                "resources": {"CPU": self.cpu_node_cpus, "GPU": 0},
                "node_config": self._node(self.cpu_instance),
                "docker": {"worker_run_options": [shared]},
            }
        return groups

    def _commands(self) -> dict[str, Any]:
        store = f"--object-store-memory={self.object_store_bytes}"
        return {
            "head_start_ray_commands": [
                "ray stop",
                f"{_ENVIRONMENT} ray start --head {_PORTS} --autoscaling-config=~/ray_bootstrap_config.yaml",
            ],
            "worker_start_ray_commands": [
                "ray stop",
                f"{_ENVIRONMENT} ray start --address=$RAY_HEAD_IP:6379 --object-manager-port=8076 {store}",
            ],
        }

    def _gpu_instance(self) -> str:
        return self.gpu_instance or self.instances_by_gpus[self.gpus]

    def _provider(self) -> dict[str, Any]:
        raise NotImplementedError

    def _node(self, instance: str, *, is_head: bool = False, has_gpus: bool = False) -> dict[str, Any]:
        raise NotImplementedError

    def _notes(self) -> list[str]:
        return []


@dataclass(frozen=True, kw_only=True)
class Aws(_RayUp):
    """A cluster file for EC2: ray up FILE. Keys come from the usual places of boto3, never from the file."""

    region: str = "us-west-2"
    """AWS region, best the one of the data's bucket."""
    zones: str | None = None
    """Availability zones, comma-separated; default: any of the region."""
    head_instance: str = "m6i.2xlarge"
    """Instance type of the head, without GPUs."""
    cpu_instance: str = "m6i.4xlarge"
    """Instance type of the CPU nodes; --cpu-node-cpus must be what it has."""
    machine_image: str | None = None
    """AMI of all nodes with Docker and NVIDIA's driver; Ray's own default is too old for torch."""
    instance_profile: str | None = None
    """Name or ARN of an instance profile that may read and write the data's bucket, for all nodes but the head."""

    file_name: ClassVar[str] = "ray-aws.yaml"
    provider: ClassVar[str] = "AWS"
    instances_by_gpus: ClassVar[Mapping[int, str]] = {1: "g6e.4xlarge", 4: "g6e.12xlarge", 8: "p4d.24xlarge"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[a-z]{2,4}(-[a-z]+)+-\d{1,2}", self.region):
            raise ValueError(f"--region {self.region!r} is no region of AWS, such as us-west-2")
        for zone in [] if self.zones is None else self.zones.split(","):  # also those of a city: us-west-2-lax-1a
            if not re.fullmatch(rf"{self.region}(-[a-z0-9-]*\d)?[a-z]|{self.region}-wl\d-[a-z0-9-]+", zone):
                raise ValueError(
                    f"--zones: {zone!r} is no zone of --region {self.region}, such as {self.region}a; "
                    f"several stand with commas and without spaces"
                )
        if self.instance_profile is not None and not _PROFILE.fullmatch(self.instance_profile):
            raise ValueError(
                f"--instance-profile {self.instance_profile!r} is neither the name of an instance profile, such as "
                f"robots, nor its ARN, such as arn:aws:iam::123456789012:instance-profile/robots (a role's is another)"
            )

    def _provider(self) -> dict[str, Any]:
        zones = {"availability_zone": self.zones} if self.zones else {}
        return {"type": "aws", "region": self.region, **zones, "cache_stopped_nodes": False}

    def _node(self, instance: str, *, is_head: bool = False, has_gpus: bool = False) -> dict[str, Any]:
        profile = None if is_head else self.instance_profile
        return {
            "InstanceType": instance,
            **({"ImageId": self.machine_image} if self.machine_image else {}),
            **({"IamInstanceProfile": {"Arn" if ":" in profile else "Name": profile}} if profile else {}),
            "BlockDeviceMappings": [
                {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": self.disk_gb, "VolumeType": "gp3"}}
            ],
        }

    def _notes(self) -> list[str]:
        notes = []
        if self.machine_image is None:
            notes.append(
                "Ray's default AMI has Ubuntu 18.04 and a driver too old for torch: name one by --machine-image."
            )
        if self.instance_profile is None:
            notes.append("Without --instance-profile only the head may read S3, by a role that Ray makes.")
        return notes


@dataclass(frozen=True, kw_only=True)
class Gcp(_RayUp):
    """A cluster file for Google Compute Engine: ray up FILE. Credentials are those of gcloud, never in the file."""

    project: str | None = os.environ.get("GOOGLE_CLOUD_PROJECT")
    """Google Cloud project; default: GOOGLE_CLOUD_PROJECT."""
    region: str = "us-central1"
    """Region, best the one of the data's bucket."""
    zone: str = "us-central1-a"
    """Zone of all nodes."""
    head_instance: str = "n2-standard-8"
    """Machine type of the head, without GPUs."""
    cpu_instance: str = "n2-standard-16"
    """Machine type of the CPU nodes; --cpu-node-cpus must be what it has."""
    machine_image: str = "projects/deeplearning-platform-release/global/images/family/common-cu124-ubuntu-2204"
    """Boot image of all nodes, with Docker and NVIDIA's driver (gcloud compute images list names the present ones)."""
    service_account: str | None = None
    """E-mail of a service account that may read and write the data's bucket, for all nodes but the head."""

    file_name: ClassVar[str] = "ray-gcp.yaml"
    provider: ClassVar[str] = "Google Cloud"
    instances_by_gpus: ClassVar[Mapping[int, str]] = {
        1: "a2-highgpu-1g",
        2: "a2-highgpu-2g",
        4: "a2-highgpu-4g",
        8: "a2-highgpu-8g",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[a-z]+-[a-z]+\d{1,2}", self.region):
            raise ValueError(f"--region {self.region!r} is no region of Google Cloud, such as us-central1")
        if not re.fullmatch(rf"{self.region}-(ai\d)?[a-z]", self.zone):
            raise ValueError(
                f"--zone {self.zone} does not lie in --region {self.region}, as {self.region}-a does: give both"
            )

    def _document(self) -> dict[str, Any]:
        # Ray's launcher on the head talks to Compute Engine with this package, which the project does not need.
        client = "python -c 'import googleapiclient' || pip install google-api-python-client==2.202.0"
        return super()._document() | {"head_setup_commands": [client]}

    def _provider(self) -> dict[str, Any]:
        return {
            "type": "gcp",
            "region": self.region,
            "availability_zone": self.zone,
            "project_id": self.project,
            "cache_stopped_nodes": False,
        }

    def _node(self, instance: str, *, is_head: bool = False, has_gpus: bool = False) -> dict[str, Any]:
        disk = {"diskSizeGb": self.disk_gb, "sourceImage": self.machine_image}
        node: dict[str, Any] = {
            "machineType": instance,
            "disks": [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": disk}],
        }
        if has_gpus:
            node["scheduling"] = [{"onHostMaintenance": "TERMINATE"}]
            node["metadata"] = {"items": [{"key": "install-nvidia-driver", "value": "True"}]}
        if self.service_account is not None and not is_head:
            scope = "https://www.googleapis.com/auth/cloud-platform"
            node["serviceAccounts"] = [{"email": self.service_account, "scopes": [scope]}]
        return node

    def _notes(self) -> list[str]:
        notes = []
        if self.project is None:
            notes.append("project_id is missing below: give --project, or set GOOGLE_CLOUD_PROJECT.")
        if self.service_account is None:
            notes.append("Without --service-account only the head may read the bucket, by an account that Ray makes.")
        return notes
