"""Processor time of an episode's conversion on three hosts against one process, both from S3 to S3.

Hosts are namespaces of this machine (tests/support/hosts.py), so this needs root, and cgroups count: every process of
the three nodes (Ray's own, workers, the job's driver) against one process of `rtp preprocess --workers 0`. The S3
server and the command that submits are outside. What starting costs is left out: each side converts a small and a large
dataset, and the difference counts. What the nodes take while nothing runs is measured too, and the ratio given with it
and without. Both stores must have the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.command_line import SAMPLE
from tests.support.file_contents import file_contents
from tests.support.host_cluster import HostCluster, host_cluster
from tests.support.hosts import CHECKOUT

REPEATED = 80  # the sample's 18 episodes in a shard: 85 MB, where the mean of Open X-Embodiment's is 500
IDLE_S = 15.0
CGROUPS = Path("/sys/fs/cgroup/cpuacct")


@dataclass(frozen=True)
class CpuGroup:
    """A cgroup (version 1) that counts the processor time of processes that are started inside `joined`."""

    folder: Path

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """This process is in it inside the block, and what it starts there stays in it."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "cgroup.procs").write_text("0")
        try:
            yield
        finally:
            (CGROUPS / "cgroup.procs").write_text("0")

    def cpu_s(self) -> float:
        return int((self.folder / "cpuacct.usage").read_text()) / 1e9

    def remove(self) -> None:
        with contextlib.suppress(OSError):  # some of its processes may still be ending
            self.folder.rmdir()


def write_source(folder: Path, shards: int) -> int:
    """A dataset of so many shards, each the sample's first one REPEATED times; its episodes."""
    folder.mkdir(parents=True)
    shutil.copy(SAMPLE / "features.json", folder)
    info = json.loads((SAMPLE / "dataset_info.json").read_text())
    (train,) = [split for split in info["splits"] if split["name"] == "train"]
    length = int(train["shardLengths"][0]) * REPEATED
    train["shardLengths"] = [str(length)] * shards
    (folder / "dataset_info.json").write_text(json.dumps(info | {"splits": [train]}))
    content = next(SAMPLE.glob("*-train.tfrecord-00000-*")).read_bytes() * REPEATED  # records follow one another
    for number in range(shards):
        (folder / f"metaworld_sample-train.tfrecord-{number:05d}-of-{shards:05d}").write_bytes(content)
    return length * shards


def words(source: str, out: str) -> list[str]:
    flags = ["--dataset", "metaworld_sample", "--encoder", "hash"]
    return ["preprocess", f"s3://bucket/{source}/1.0.0", f"s3://bucket/{out}", *flags]


def one_process(cluster: HostCluster, group: CpuGroup, source: str, out: str) -> float:
    """Processor seconds of `rtp preprocess --workers 0`."""
    command = [sys.executable, "-m", "pipelines", *words(source, out), "--workers", "0"]
    variables = {"PYTHONPATH": CHECKOUT} | cluster.services.environment
    with group.joined():
        before = group.cpu_s()
        done = cluster.submitter.run(*command, variables=variables)
        taken = group.cpu_s() - before
    assert done.returncode == 0, done.stdout + done.stderr
    return taken


def three_hosts(cluster: HostCluster, group: CpuGroup, source: str, out: str) -> tuple[float, float]:
    """(processor seconds of all nodes, seconds) while the job ran."""
    before, began = group.cpu_s(), time.monotonic()
    cluster.rtp(*words(source, out))
    return group.cpu_s() - before, time.monotonic() - began


def idle_share(group: CpuGroup) -> float:
    """Processor seconds a second that the nodes take while they wait."""
    before = group.cpu_s()
    time.sleep(IDLE_S)
    return (group.cpu_s() - before) / IDLE_S


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=3, help="shards of the small dataset")
    parser.add_argument("--large", type=int, default=9, help="shards of the large one")
    shards = parser.parse_args()
    nodes, alone = (CpuGroup(CGROUPS / f"rtp-{os.getpid()}-{name}") for name in ("nodes", "alone"))
    try:
        with (
            tempfile.TemporaryDirectory() as home,
            host_cluster(Path(home), around_nodes=nodes.joined()) as cluster,
        ):
            objects = cluster.services.objects
            episodes = {
                name: write_source(objects / name / "1.0.0", getattr(shards, name)) for name in ("small", "large")
            }
            idle = idle_share(nodes)
            one = {name: one_process(cluster, alone, name, f"one-{name}") for name in episodes}
            three = {name: three_hosts(cluster, nodes, name, f"three-{name}") for name in episodes}
            for name in episodes:
                assert file_contents(objects / f"one-{name}") == file_contents(objects / f"three-{name}")
    finally:
        for group in (nodes, alone):
            group.remove()
    report(episodes, one, three, idle)


def report(episodes: dict[str, int], one: dict[str, float], three: dict[str, tuple[float, float]], idle: float) -> None:
    more = episodes["large"] - episodes["small"]
    alone_ms = 1000 * (one["large"] - one["small"]) / more
    all_ms = 1000 * (three["large"][0] - three["small"][0]) / more
    waiting_ms = 1000 * idle * (three["large"][1] - three["small"][1]) / more
    ratio = {"with_idle": all_ms / alone_ms, "without_idle": (all_ms - waiting_ms) / alone_ms}
    print(
        f"CPU ms an episode: one process {alone_ms:.2f}, three hosts {all_ms:.2f} ({ratio['with_idle']:.2f}), without "
        f"what idle nodes take {all_ms - waiting_ms:.2f} ({ratio['without_idle']:.2f})"
    )
    print(
        f"start: one process {one['small'] - alone_ms * episodes['small'] / 1000:.1f} CPU s, three hosts "
        f"{three['small'][0] - all_ms * episodes['small'] / 1000:.1f}; idle nodes {idle:.2f} CPU s a second"
    )
    figures = {"one": one, "three": three, "episodes": episodes, "idle": idle}
    print(json.dumps({"benchmark": "preprocess_hosts", "ratio": ratio, **figures}))


if __name__ == "__main__":
    main()
