"""Cluster files for `ray up` keep to the schema in the installed Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from cluster.templates.ray_up import TOKEN_FILE, Aws, Gcp

SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
FILES = {
    "aws": Aws(gpu_nodes=2, cpu_nodes=4, min_cpu_nodes=1, instance_profile="arn:aws:iam::1:instance-profile/x"),
    "aws, one zone, no gpus": Aws(gpu_nodes=0, cpu_nodes=1, zones="us-west-2a", machine_image="ami-1"),
    "gcp": Gcp(gpu_nodes=2, gpus=4, cpu_nodes=1, project="robots", service_account="x@robots.iam.gserviceaccount.com"),
    "gcp, no project": Gcp(project=None),
}


@pytest.mark.parametrize("cluster", FILES.values(), ids=FILES)
def test_a_file_keeps_to_the_schema(cluster: Aws | Gcp) -> None:
    document = yaml.safe_load(cluster.render())
    jsonschema.Draft7Validator(SCHEMA).validate(document)
    types = document["available_node_types"]
    assert document["head_node_type"] in types
    assert document["max_workers"] == sum(kind.get("max_workers", 0) for kind in types.values())
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert document["file_mounts"] == {TOKEN_FILE: TOKEN_FILE}  # where the token lies, not the token


def test_what_the_schema_does_not_know_is_seen() -> None:
    document = yaml.safe_load(FILES["aws"].render())
    document["available_node_types"]["gpu"]["max_worker"] = 3
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.Draft7Validator(SCHEMA).validate(document)


def test_rights_and_drivers_go_to_the_nodes_that_need_them() -> None:
    types = yaml.safe_load(FILES["aws"].render())["available_node_types"]
    assert ["IamInstanceProfile" in types[name]["node_config"] for name in ("head", "gpu", "cpu")] == [
        False,
        True,
        True,
    ]
    types = yaml.safe_load(FILES["gcp"].render())["available_node_types"]
    assert ["serviceAccounts" in types[name]["node_config"] for name in ("head", "gpu", "cpu")] == [False, True, True]
    assert ["scheduling" in types[name]["node_config"] for name in ("head", "gpu", "cpu")] == [False, True, False]
    assert types["gpu"]["node_config"]["machineType"] == "a2-highgpu-4g"
    assert types["gpu"]["docker"] == {"worker_run_options": ["--shm-size=32g", "--gpus=all"]}


@pytest.mark.parametrize("profile", ["robots", "arn:aws:iam::123456789012:instance-profile/team/robots"])
def test_an_instance_profile_is_passed_as_what_it_is(profile: str) -> None:
    types = yaml.safe_load(Aws(gpu_nodes=1, instance_profile=profile).render())["available_node_types"]
    field = "Arn" if ":" in profile else "Name"
    assert types["gpu"]["node_config"]["IamInstanceProfile"] == {field: profile}


def test_what_is_missing_is_said_at_the_top() -> None:
    assert "# project_id is missing below" in FILES["gcp, no project"].render()
    assert "Without --instance-profile" in Aws().render() and "Without" not in FILES["aws"].render()


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (Aws, {"gpus": 3}, "name the machine with --gpu-instance .there is a default for 1, 4, 8"),
        (Aws, {"disk_gb": 20}, "--disk-gb must be at least 100"),
        (
            Aws,
            {"instance_profile": "arn:aws:iam::123456789012:role/robots"},
            "is neither the name of an instance profile",
        ),
        (Aws, {"instance_profile": ""}, "--instance-profile '' is neither the name"),
        (Gcp, {"zone": "europe-west4-a"}, "--zone europe-west4-a does not lie in --region us-central1"),
    ],
)
def test_what_cannot_work_is_refused(kind: type[Aws | Gcp], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind(**settings)
