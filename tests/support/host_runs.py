"""Trainings and conversions on a cluster of hosts that run beside a test's block, and the same in one process."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.training.run_files import final_samples, read_metrics
from preprocessing.convert import ConvertConfig, convert
from tests.support.command_line import SAMPLE
from tests.support.host_cluster import HostCluster, summary_of
from tests.support.hosts import until

SHARDS, REPEATED = 24, 2  # files of the long source, each of so many times the 18 episodes of the sample's first one
EPISODES = 18 * REPEATED * SHARDS
EVERY = 5  # steps between checkpoints
_START_S = 180


def flags(steps: int) -> list[str]:
    loop = ["--loop.steps", steps, "--loop.checkpoint-every", EVERY, "--loop.log-samples"]
    return [str(word) for word in ("rt1_tiny", *loop, "--optimizer.lr", "3e-3")]


def train_here(store: Path, folder: Path, steps: int) -> Path:
    """The output folder of the training in this process, which is trained once."""
    if (folder / f"run-{steps}").exists():
        return folder / f"run-{steps}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main(["train", *flags(steps), "--data", str(store), "--output", f"run-{steps}"]) == 0
    return folder / f"run-{steps}"


@contextlib.contextmanager
def training(cluster: HostCluster, store: str, name: str, steps: int, *, timeout_s: float = 300) -> Iterator[Path]:
    """The output folder of a training with ZeRO-2 on two hosts that runs beside the block until it has a checkpoint;
    then to its end, which must come within timeout_s."""
    output, log = cluster.services.objects / "runs" / name, cluster.home / f"{name}.out"
    with cluster.submitted(log, "--", *train_words(store, name, steps), "--json") as started:
        until(lambda: newest(output) >= EVERY or started.poll() is not None, "it trains", timeout_s=_START_S)
        yield output
        assert _summary(started, log, timeout_s)["steps"] == steps


def train_words(store: str, name: str, steps: int) -> list[object]:
    """`train` with ZeRO-2 on two workers of a CPU each, into s3://bucket/runs/NAME."""
    workers = ["--launch", "RayLaunch", "--launch.num-workers", 2, "--launch.max-failures", 5]
    engine = ["--loop.micro-batch", 4, "--engine", "DeepSpeedEngineConfig", "--engine.zero.stage", 2]
    return ["train", *flags(steps), "--data", store, "--output", f"s3://bucket/runs/{name}", *workers, *engine]


def newest(output: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(path.parent.name[5:]) for path in output.glob("checkpoints/step-*/manifest.json")), default=0)


def require_same_run(output: Path, undisturbed: Path) -> None:
    """The same samples at every step, and the same losses up to the order of additions."""
    assert final_samples(output) == final_samples(undisturbed)
    ours, theirs = (
        {line["step"]: line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line}
        for run in (output, undisturbed)
    )
    assert list(ours) == list(theirs) == list(final_samples(undisturbed))
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-3)


def write_long(folder: Path) -> None:
    """A dataset of SHARDS files, each of the sample's first train file REPEATED times."""
    folder.mkdir(parents=True)
    shutil.copy(SAMPLE / "features.json", folder)
    info = json.loads((SAMPLE / "dataset_info.json").read_text())
    (train,) = [split for split in info["splits"] if split["name"] == "train"]
    train["shardLengths"] = [str(REPEATED * int(train["shardLengths"][0]))] * SHARDS
    (folder / "dataset_info.json").write_text(json.dumps(info | {"splits": [train]}))
    content = next(SAMPLE.glob("*-train.tfrecord-00000-*")).read_bytes() * REPEATED  # records follow one another
    for number in range(SHARDS):
        (folder / f"metaworld_sample-train.tfrecord-{number:05d}-of-{SHARDS:05d}").write_bytes(content)


def convert_here(folder: Path) -> Path:
    """The folder of the long dataset's store, made in this process."""
    write_long(folder / "source/1.0.0")
    settings = ConvertConfig(dataset="metaworld_sample", encoder="hash", workers=0)
    convert(str(folder / "source/1.0.0"), str(folder / "out"), settings)
    return folder / "out"


@contextlib.contextmanager
def converting(cluster: HostCluster, name: str, *, timeout_s: float = 300) -> Iterator[Path]:
    """The store's folder of the long dataset's conversion, which runs beside the block until some shards are done; then
    to its end within timeout_s, with all its episodes."""
    source = cluster.services.objects / "source/long/1.0.0"
    if not source.exists():
        write_long(source)
    log, store = cluster.home / f"{name}.out", cluster.services.objects / name / "metaworld_sample/1.0.0/train"
    asked = ["--dataset", "metaworld_sample", "--encoder", "hash", "--json"]
    words = ["preprocess", "s3://bucket/source/long/1.0.0", f"s3://bucket/{name}", *asked]
    with cluster.submitted(log, "--", *words) as started:
        until(lambda: num_shards(store) >= 3 or started.poll() is not None, "it converts", timeout_s=_START_S)
        yield store
        account = _summary(started, log, timeout_s)
    assert account["episodes_in"] == account["episodes_out"] == EPISODES and account["quarantined"] == 0
    assert account["shards_converted"] == SHARDS


def num_shards(store: Path) -> int:
    return len(list(store.glob("shard-*.parquet")))


def _summary(started: subprocess.Popen[bytes], log: Path, timeout_s: float) -> dict[str, object]:
    """Of the job, once it has ended with exit code 0."""
    try:
        started.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the job has not ended after {timeout_s:.0f} s:\n{log.read_text()[-6000:]}") from None
    assert started.returncode == 0, log.read_text()[-8000:]
    return summary_of(log.read_text())
