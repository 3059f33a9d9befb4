"""Three hosts whose store goes away for a minute, whose link is slow, or which are cut off and die: trainings
and conversions end as undisturbed ones.

Ray has its own settings, so the times are those of a user's cluster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.file_contents import file_contents
from tests.support.host_cluster import HostCluster
from tests.support.host_runs import (
    convert_here,
    converting,
    newest,
    num_shards,
    require_same_run,
    train_here,
    train_words,
    training,
)
from tests.support.hosts import Host, until

pytestmark = pytest.mark.slow
OUTAGE_S = 60
CUT_OFF_S = 5
STEPS, SLOW_STEPS = 40, 3
TRAIN = "metaworld_sample/1.0.0/train"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return file_contents(convert_here(tmp_path_factory.mktemp("long")))


def away(cluster: HostCluster, moved_on: Callable[[], bool]) -> None:
    """The S3 server ends, comes back after a minute, and what was at work goes on."""
    cluster.services.stop_s3()
    time.sleep(OUTAGE_S)
    cluster.services.start_s3()
    until(moved_on, "it goes on", timeout_s=60)


def test_a_training_waits_for_its_store(cluster: HostCluster, uploaded: str, local_stores: Path, folder: Path) -> None:
    with training(cluster, uploaded, "store-away", STEPS) as output:
        before = newest(output)
        assert before < STEPS
        away(cluster, lambda: newest(output) > before)
    require_same_run(output, train_here(local_stores / TRAIN, folder, STEPS))


def test_a_conversion_waits_for_its_store(cluster: HostCluster, converted: dict[str, bytes]) -> None:
    with converting(cluster, "away") as store:
        before = num_shards(store)
        away(cluster, lambda: num_shards(store) > before)
    assert file_contents(cluster.services.objects / "away") == converted


def test_a_slow_link_only_slows_a_conversion(cluster: HostCluster, converted: dict[str, bytes]) -> None:
    """Of two nodes: 50 ms each way and one frame in a hundred lost, to the other nodes and to the store."""
    first, second = (node.slow(delay_s=0.05, loss=0.01) for node in cluster.nodes[1:])
    with first, second, converting(cluster, "slow"):
        pass
    assert file_contents(cluster.services.objects / "slow") == converted


def test_a_slow_link_only_slows_a_training(
    cluster: HostCluster, uploaded: str, local_stores: Path, folder: Path
) -> None:
    """Of the last node, where one of the ranks is: a step makes dozens of exchanges, and each takes 0.1 s and more."""
    with cluster.nodes[-1].slow(delay_s=0.05, loss=0.01):
        done = cluster.submit("--", *train_words(uploaded, "slow", SLOW_STEPS), timeout_s=400)
    assert done.returncode == 0, done.stdout[-8000:]
    assert f"on {cluster.nodes[-1].name}: gloo" in done.stdout
    require_same_run(cluster.services.objects / "runs/slow", train_here(local_stores / TRAIN, folder, SLOW_STEPS))


# --- Hosts that are lost for good: what needs all three stands above ---


def lose(cluster: HostCluster, doing: str) -> None:
    """A node, not the head, is cut off while a process on it is `doing` its part, and dies a little later."""
    found: list[Host] = []

    def look() -> bool:
        found[:] = [node for node in cluster.nodes[1:] if node.address in cluster.alive() and is_doing(node, doing)]
        return bool(found)

    until(look, f"a node is at {doing}")
    found[0].cut()
    time.sleep(CUT_OFF_S)  # it still runs, and nobody hears of it
    found[0].kill()


def is_doing(node: Host, doing: str) -> bool:
    """By the titles that Ray gives its processes while they work."""
    return any(doing in " ".join(each.cmdline()) for each in node.processes())


def test_a_training_survives_a_host_that_is_cut_off_and_dies(
    cluster: HostCluster, uploaded: str, local_stores: Path, folder: Path
) -> None:
    with training(cluster, uploaded, "cut", STEPS) as output:
        lose(cluster, "RayTrainWorker")
    require_same_run(output, train_here(local_stores / TRAIN, folder, STEPS))


def test_a_conversion_survives_a_host_that_is_cut_off_and_dies(
    cluster: HostCluster, converted: dict[str, bytes]
) -> None:
    with converting(cluster, "cut"):
        lose(cluster, "_ShardRow")
    assert file_contents(cluster.services.objects / "cut") == converted
