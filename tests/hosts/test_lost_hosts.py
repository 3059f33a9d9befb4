"""Hosts that are cut off and then die, in the middle of a training and of a conversion: both end as undisturbed ones.

Ray has its own settings, so the times are those of a user's cluster.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.file_contents import file_contents
from tests.support.host_cluster import HostCluster
from tests.support.host_runs import convert_here, converting, require_same_run, train_here, training
from tests.support.hosts import Host, until

pytestmark = pytest.mark.slow
STEPS = 40
CUT_OFF_S = 5


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


def test_a_training_ends_as_undisturbed(
    cluster: HostCluster, uploaded: str, local_stores: Path, tmp_path: Path
) -> None:
    with training(cluster, uploaded, "cut", STEPS) as output:
        lose(cluster, "RayTrainWorker")
    require_same_run(output, train_here(local_stores / "metaworld_sample/1.0.0/train", tmp_path, STEPS))


def test_a_conversion_loses_and_doubles_nothing(cluster: HostCluster, tmp_path: Path) -> None:
    with converting(cluster, "cut"):
        lose(cluster, "_ShardRow")
    assert file_contents(cluster.services.objects / "cut") == file_contents(convert_here(tmp_path))
