"""KubeRay's manifests keep to KubeRay's own schemas, hold no secret, and leave GPUs to the pods that need them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from cluster.templates.kuberay import KubeRay, KubeRayJob
from tests.support.kubernetes import complaints, schema_of

IMAGE = "registry.example/rt-pipelines:0.1.0"
CLUSTERS = {
    "gpus and cpus": KubeRay(gpu_nodes=2, cpu_nodes=4, min_cpu_nodes=1, image=IMAGE),
    "gpus alone, no secret": KubeRay(gpu_nodes=1, gpus=4, secret=None),
    "cpus alone": KubeRay(gpu_nodes=0, cpu_nodes=3, service_account="robots"),
    "redis": KubeRay(redis="redis:6379", redis_secret="redis-password"),
}
JOB = KubeRayJob(image=IMAGE, command=("train", "rt1_fractal", "--data", "s3://b/a store", "--resume"), redis="r:1")


@pytest.fixture(scope="module")
def cluster_schema() -> dict[str, Any]:
    return schema_of("RayCluster")


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_a_cluster_keeps_to_the_schema(cluster: KubeRay, cluster_schema: dict[str, Any]) -> None:
    assert complaints(yaml.safe_load(cluster.render()), cluster_schema) == []


def test_a_job_keeps_to_the_schema() -> None:
    manifest = yaml.safe_load(JOB.render())
    assert complaints(manifest, schema_of("RayJob")) == []
    assert manifest["spec"]["entrypoint"] == "rtp train rt1_fractal --data 's3://b/a store' --resume"


def test_what_the_schema_does_not_know_is_seen(cluster_schema: dict[str, Any]) -> None:
    manifest = yaml.safe_load(CLUSTERS["redis"].render())
    manifest["spec"]["gcsFaultToleranceOptions"]["redisPasword"] = {}
    manifest["spec"]["workerGroupSpecs"][0]["minReplicas"] = "none"
    manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    found = complaints(manifest, cluster_schema)
    assert len(found) == 3 and any("redisPasword" in line for line in found)


def test_gpus_shared_memory_and_scaling_go_where_they_belong() -> None:
    spec = yaml.safe_load(CLUSTERS["gpus and cpus"].render())["spec"]
    gpu, cpu = spec["workerGroupSpecs"]
    assert (gpu["minReplicas"], gpu["maxReplicas"], cpu["minReplicas"], cpu["maxReplicas"]) == (0, 2, 1, 4)
    assert spec["enableInTreeAutoscaling"] and spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    for group, gpus in ((spec["headGroupSpec"], None), (gpu, "8"), (cpu, None)):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus
        assert container["volumeMounts"] == [{"name": "shared-memory", "mountPath": "/dev/shm"}]
        assert pod["volumes"][0]["emptyDir"]["medium"] == "Memory"
        assert container["image"] == IMAGE
    assert int(gpu["rayStartParams"]["object-store-memory"]) < 32 * 2**30


def test_the_head_is_replaced_only_where_a_redis_is_named() -> None:
    options = yaml.safe_load(CLUSTERS["redis"].render())["spec"]["gcsFaultToleranceOptions"]
    reference = {"name": "redis-password", "key": "password"}
    assert options["redisAddress"] == "redis:6379" and options["redisPassword"] == {
        "valueFrom": {"secretKeyRef": reference}
    }
    assert "gcsFaultToleranceOptions" not in yaml.safe_load(KubeRay().render())["spec"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"redis": "redis://:word@redis:6379"}, "no HOST:PORT; its password belongs into --redis-secret"),
        ({"redis": "redis"}, "no HOST:PORT"),
        ({"redis_secret": "x"}, "--redis-secret is for --redis"),
        ({"image": "me:word@registry/x:1"}, "user or password before an @"),
        ({"image": "registry:5000/x"}, "names no version"),
        ({"image": "x:latest"}, "names no version"),
        ({"image": "x: 1"}, "no name of an image"),
        ({"gpu_nodes": -1}, "--gpu-nodes must be 0 or more"),
        ({"gpu_nodes": 0}, "give --gpu-nodes or --cpu-nodes"),
        ({"gpus": 0}, "--gpus must be at least 1"),
        ({"min_gpu_nodes": 2}, "--min-gpu-nodes is above --gpu-nodes"),
        ({"shared_memory_gb": 256}, "--gpu-node-memory-gb is not above --shared-memory-gb"),
        ({"name": "Robots!"}, "lower-case letters"),
        ({"secret": "x\nspec: mine"}, "--secret .* is no name in Kubernetes"),
        ({"service_account": "My Robots"}, "--service-account .* is no name"),
        ({"redis": "r:1", "redis_secret": ""}, "--redis-secret '' is no name"),
        ({"head_cpus": 0}, "--head-cpus must be at least 1"),
        ({"head_memory_gb": -3}, "--head-memory-gb must be at least 1"),
    ],
)
def test_what_cannot_work_or_would_show_a_secret_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        KubeRay(**settings)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": None}, "needs --image"),
        ({"command": ()}, "give it after --"),
        ({"command": ("train", "--tracking", "https://me:word@host")}, "use --secret"),
        ({"command": ("train", "--tracking", "https://TOKEN@host")}, "use --secret"),
    ],
)
def test_a_job_without_what_it_needs_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(JOB, **change).render()


def test_a_digest_pins_an_image_too() -> None:
    assert "x@sha256:0a" in KubeRay(image="x@sha256:0a").render()
