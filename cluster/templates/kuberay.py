"""Kubernetes manifests for the KubeRay operator: a RayCluster, or a RayJob that brings a cluster up for one command.

The head has no GPU and runs no task: drivers of submitted jobs live there. Ray's token is on, and KubeRay makes it;
with `redis` the cluster outlives its head (docs/kubernetes.md says what of a job does).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import tyro

from cluster.templates.node_groups import IDLE_MINUTES, WAIT_S, NodeGroups, as_yaml, project_version, ray_version

_GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
_REDIS = re.compile(r"[A-Za-z0-9.-]+:\d{1,5}")
_OBJECT_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")  # of Kubernetes: a DNS subdomain


@dataclass(frozen=True, kw_only=True)
class KubeRay(NodeGroups):
    """A RayCluster of KubeRay (v1.5 or newer): kubectl apply -f FILE."""

    head_cpus: int = 4
    """CPU cores of the head, for drivers and Ray's own services."""
    head_memory_gb: int = 16
    """Memory of the head in GiB."""
    gpu_node_memory_gb: int = 256
    """Memory of each GPU pod in GiB, shared memory included."""
    cpu_node_memory_gb: int = 64
    """Memory of each CPU pod in GiB, shared memory included."""
    secret: str | None = "rt-pipelines-env"
    """Kubernetes secret whose keys become environment variables of all pods (AWS_ACCESS_KEY_ID, MLFLOW_TRACKING_URI
    and so on); the pods start without it too."""
    service_account: str | None = None
    """Kubernetes service account of all pods, where object stores know them by it."""
    redis: str | None = None
    """HOST:PORT of a Redis that keeps the state of Ray's head, so that the cluster outlives it."""
    redis_secret: str | None = None
    """Kubernetes secret with the password of that Redis under the key password."""

    file_name: ClassVar[str] = "raycluster.yaml"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.redis is not None and not _REDIS.fullmatch(self.redis):
            raise ValueError(f"--redis {self.redis!r} is no HOST:PORT; its password belongs into --redis-secret")
        if self.redis_secret is not None and self.redis is None:
            raise ValueError("--redis-secret is for --redis HOST:PORT, which is missing")
        for flag, name in (
            ("--secret", self.secret),
            ("--service-account", self.service_account),
            ("--redis-secret", self.redis_secret),
        ):
            if name is not None and not _OBJECT_NAME.fullmatch(name):
                raise ValueError(
                    f"{flag} {name!r} is no name in Kubernetes: give lower-case letters, digits and dashes"
                )
        for flag, amount in (("--head-cpus", self.head_cpus), ("--head-memory-gb", self.head_memory_gb)):
            if amount < 1:
                raise ValueError(f"{flag} must be at least 1, got {amount}")
        for group in ("gpu", "cpu"):
            if getattr(self, f"{group}_node_memory_gb") <= self.shared_memory_gb:
                raise ValueError(
                    f"--{group}-node-memory-gb is not above --shared-memory-gb, which is {self.shared_memory_gb}"
                )

    def render(self) -> str:
        comment = [
            f"A Ray cluster on Kubernetes: kubectl apply -f {self.file_name}",
            f"Its dashboard: kubectl port-forward service/{self.name}-head-svc 8265:8265",
            f"Its token: export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(kubectl get secret {self.name} "
            "-o jsonpath='{.data.auth_token}' | base64 -d)",
            *self._secret_comment(),
        ]
        return as_yaml(self._resource("RayCluster", self.cluster_spec()), comment)

    def cluster_spec(self) -> dict[str, Any]:
        """`spec` of a RayCluster."""
        fault_tolerance = {"gcsFaultToleranceOptions": self._redis()} if self.redis is not None else {}
        return {
            "rayVersion": ray_version(),
            "authOptions": {"mode": "token"},
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {
                "version": "v2",
                "upscalingMode": "Default",
                "idleTimeoutSeconds": 60 * IDLE_MINUTES,
                "resources": {
                    "requests": {"cpu": "500m", "memory": "1Gi"},
                    "limits": {"cpu": "500m", "memory": "1Gi"},
                },
            },
            **fault_tolerance,
            "headGroupSpec": {
                "serviceType": "ClusterIP",
                "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
                "template": self._pod("ray-head", cpus=self.head_cpus, memory_gb=self.head_memory_gb, shared_gb=4),
            },
            "workerGroupSpecs": self._groups(),
        }

    def _groups(self) -> list[dict[str, Any]]:
        groups = []
        if self.gpu_nodes:
            template = self._pod(
                "ray-worker", cpus=self.gpu_node_cpus, memory_gb=self.gpu_node_memory_gb, gpus=self.gpus
            )
            template["spec"]["tolerations"] = [_GPU_TAINT]
            groups.append(
                self._group("gpu", self.min_gpu_nodes, self.gpu_nodes, {"num-gpus": str(self.gpus)}, template)
            )
        if self.cpu_nodes:
            template = self._pod("ray-worker", cpus=self.cpu_node_cpus, memory_gb=self.cpu_node_memory_gb)
            groups.append(self._group("cpu", self.min_cpu_nodes, self.cpu_nodes, {"num-gpus": "0"}, template))
        return groups

    def _group(
        self, name: str, least: int, most: int, parameters: Mapping[str, str], template: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "groupName": name,
            "replicas": least,
            "minReplicas": least,
            "maxReplicas": most,
            "rayStartParams": {**parameters, "object-store-memory": str(self.object_store_bytes)},
            "template": template,
        }

    def _pod(
        self, container: str, *, cpus: int, memory_gb: int, gpus: int = 0, shared_gb: int | None = None
    ) -> dict[str, Any]:
        shared = {"medium": "Memory", "sizeLimit": f"{shared_gb or self.shared_memory_gb}Gi"}
        amounts = {"cpu": str(cpus), "memory": f"{memory_gb}Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
        environment = {"envFrom": [{"secretRef": {"name": self.secret, "optional": True}}]} if self.secret else {}
        account = {"serviceAccountName": self.service_account} if self.service_account else {}
        ports = [("gcs", 6379), ("dashboard", 8265), ("client", 10001)]
        of_head = {
            "ports": [{"name": name, "containerPort": port} for name, port in ports],
            "env": [{"name": "RTP_WAIT_FOR_NODES_S", "value": str(WAIT_S)}],
        }
        return {
            "spec": {
                **account,
                "containers": [
                    {
                        "name": container,
                        "image": self.chosen_image,
                        "imagePullPolicy": "IfNotPresent",
                        **(of_head if container == "ray-head" else {}),
                        **environment,
                        "resources": {"requests": amounts, "limits": dict(amounts)},
                        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],
                    }
                ],
                "volumes": [{"name": "shared-memory", "emptyDir": shared}],
            }
        }

    def _redis(self) -> dict[str, Any]:
        password = {"valueFrom": {"secretKeyRef": {"name": self.redis_secret, "key": "password"}}}
        return {
            "redisAddress": self.redis,
            **({"redisPassword": password} if self.redis_secret else {}),
        }

    def _resource(self, kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        labels = {"app.kubernetes.io/name": self.name, "app.kubernetes.io/version": project_version()}
        metadata = {"name": self.name, "labels": labels}
        return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "spec": dict(spec)}

    def _secret_comment(self) -> list[str]:
        if self.secret is None:
            return []
        return [f"Its secrets: kubectl create secret generic {self.secret} --from-literal=AWS_ACCESS_KEY_ID=..."]


@dataclass(frozen=True, kw_only=True)
class KubeRayJob(KubeRay):
    """A RayJob of KubeRay: a cluster for one command of rtp, which is given after --, and gone after it."""

    retries: int = 3
    """How often the command is run again on a new cluster after it failed or lost its head; give it --resume."""
    command: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """The words after --."""

    file_name: ClassVar[str] = "rayjob.yaml"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retries < 0:
            raise ValueError(f"--retries must be 0 or more, got {self.retries}")

    def render(self) -> str:
        self._require_job()
        comment = [
            f"One command on a Ray cluster of its own: kubectl apply -f {self.file_name}",
            f"Its log: kubectl logs -f job/{self.name}, and how it ended: kubectl get rayjob {self.name}",
            *self._secret_comment(),
        ]
        words = self.command[1:] if self.command[0] == "rtp" else self.command
        spec = {
            "entrypoint": shlex.join(["rtp", *words]),
            "backoffLimit": self.retries,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 60 * IDLE_MINUTES,
            "rayClusterSpec": self.cluster_spec(),
        }
        return as_yaml(self._resource("RayJob", spec), comment)

    def _require_job(self) -> None:
        if self.image is None:
            raise ValueError("a RayJob needs --image with this project in it: rtp cluster render docker has its recipe")
        if not self.command:
            raise ValueError(
                "a RayJob runs one command: give it after --, such as -- train rt1_fractal --data s3://..."
            )
        if any(re.search(r"://[^/\s]*@", word) for word in self.command):
            raise ValueError("the command has a URL with a user or password, which the file would show: use --secret")
