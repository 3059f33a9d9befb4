"""The whole path from a fourth host on three that share nothing, with everything on S3 and MLflow: one machine's
results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.training.run_files import final_samples, read_metrics
from tests.support.file_contents import file_contents
from tests.support.host_cluster import HostCluster
from tests.support.hosts import SUBNET

WHERE = """
import json, os, socket, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

def look():
    import pipelines  # came with the job
    open("/tmp/seen-by-" + socket.gethostname(), "w").close()
    seen = sorted(name for name in os.listdir("/tmp") if name.startswith("seen-by-"))
    return socket.gethostname(), ray.util.get_node_ip_address(), seen

ray.init(logging_level="ERROR")
places = [On(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
tasks = [ray.remote(look).options(scheduling_strategy=place).remote() for place in places]
print(json.dumps(ray.get(tasks, timeout=120)))
"""


def test_three_nodes_form_one_cluster_and_share_nothing(cluster: HostCluster) -> None:
    done = cluster.submit("--", "python", "-c", WHERE)
    assert done.returncode == 0, done.stdout + done.stderr
    (answers,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    expected = [[node.name, node.address, [f"seen-by-{node.name}"]] for node in cluster.nodes]
    assert sorted(answers) == expected


def test_preprocessing_gives_the_bytes_of_one_process(
    cluster: HostCluster, stores: tuple[str, str], local_stores: Path
) -> None:
    train = "metaworld_sample/1.0.0/train"
    assert file_contents(cluster.services.objects / "stores" / train) == file_contents(local_stores / train)


STEPS = 6
COMMON = (
    "rt1_tiny",
    "--loop.steps",
    STEPS,
    "--loop.checkpoint-every",
    3,
    "--loop.log-samples",
    "--optimizer.lr",
    "3e-3",
)


PLANTED = "planted-5f1c9b"
SECRETS = {  # in the submitter's environment
    "MLFLOW_TRACKING_URI": f"http://{PLANTED}@{SUBNET}.5:5000",
    "MLFLOW_REGISTRY_URI": f"http://me:{PLANTED}@{SUBNET}.5:5000",
    "FSSPEC_S3": json.dumps({"key": PLANTED, "secret": PLANTED}),
    "FSSPEC_GS": json.dumps({"token": {"private": PLANTED}}),
    "FSSPEC_HTTP": json.dumps({"client_kwargs": {"headers": {"x": 1}, "password": PLANTED}}),
    "AWS_SECRET_ACCESS_KEY": PLANTED,
    "HF_TOKEN": PLANTED,
    "RTP_ANYTHING": f"https://{PLANTED}@host/path",
}


@pytest.fixture(scope="module")
def trained(cluster: HostCluster, stores: tuple[str, str]) -> Path:
    """The output folder of a training with ZeRO-2 on two workers of a CPU each: of two hosts therefore."""
    flags = ["--data", stores[0], "--validation", stores[1], "--output", "s3://bucket/runs/first"]
    workers = ["--launch", "RayLaunch", "--launch.num-workers", 2, "--loop.micro-batch", 4]
    zero = ["--engine", "DeepSpeedEngineConfig", "--engine.zero.stage", 2]
    done = cluster.rtp("train", *COMMON, *flags, *workers, *zero, **SECRETS)
    assert done["steps"] == STEPS and done["output"] == "s3://bucket/runs/first"
    return cluster.services.objects / "runs/first"


def test_training_gives_the_losses_and_samples_of_one_process(
    trained: Path, local_stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train, val = (str(local_stores / "metaworld_sample/1.0.0" / split) for split in ("train", "val"))
    flags = ["--data", train, "--validation", val, "--output", "run", "--launch", "InProcess"]
    assert main(["train", *map(str, COMMON), *flags, "--engine", "TorchEngineConfig"]) == 0
    assert final_samples(trained) == final_samples("run") and len(final_samples(trained)) == STEPS
    for measured, within in (("loss", 1e-4), ("gradient_norm", 1e-4), ("validation_loss", 1e-3)):
        ours, theirs = (
            [line[measured] for line in read_metrics(run / "metrics.jsonl") if measured in line]
            for run in (trained, Path("run"))
        )
        assert len(ours) >= 1 and ours == pytest.approx(theirs, rel=within), measured


@pytest.mark.slow
def test_tuned_evaluated_and_registered(cluster: HostCluster, stores: tuple[str, str], trained: Path) -> None:
    run = "s3://bucket/runs/first"
    evaluated = cluster.rtp("evaluate", run, "--data", stores[1], "--bootstrap-samples", 10)
    assert evaluated["step"] == STEPS and evaluated["evaluations"][0]["episodes"] == 24
    short = ["--budget.trials", 2, "--scheduler", "ToTheEnd", "--loop.steps", 2, "--loop.global-batch", 16]
    data = ["--data", stores[0], "--validation", stores[1]]
    cluster.rtp("tune", "rt1_lr_wd", *data, "--output", "s3://bucket/runs/sweep", *short)
    assert (cluster.services.objects / "runs/sweep/best.yaml").exists()
    registered = cluster.rtp("register", run, "--name", "arm", "--alias", "champion")
    assert cluster.services.password not in json.dumps([evaluated, registered])
    assert any((cluster.services.objects / "artifacts").rglob("model.safetensors"))
    by_name = cluster.rtp("evaluate", "models:/arm@champion", "--data", stores[1], "--bootstrap-samples", 10)
    assert by_name["evaluations"] == evaluated["evaluations"]
    for node in cluster.nodes:
        assert list((node.tmp / "work").iterdir()) == []


ASKED = (
    *(
        f"/api/v0/{kind}?detail=1&limit=1000"
        for kind in ("actors", "tasks", "workers", "nodes", "jobs", "runtime_envs")
    ),
    *("/api/jobs/", "/nodes?view=summary", "/logical/actors", "/api/cluster_status"),
)


def test_no_secret_is_seen_in_logs_answers_objects_or_records(cluster: HostCluster, trained: Path) -> None:
    files = [path for path in cluster.services.objects.rglob("*") if path.is_file()]
    kept = {str(path): path.read_bytes() for path in [*files, cluster.services.host.tmp / "mlflow.db"]}
    kept |= {path: cluster.ask(path).encode() for path in ASKED}
    kept |= {"logs": cluster.logs().encode()}
    tracked = kept[str(cluster.services.host.tmp / "mlflow.db")]
    assert b"rt1_tiny" in tracked and b"rt1_tiny" in kept["/api/jobs/"] and b"rt1_tiny" in kept["logs"]
    for secret in (PLANTED, cluster.services.password, cluster.services.secret, cluster.token):
        assert [name for name, content in kept.items() if secret.encode() in content] == [], secret
