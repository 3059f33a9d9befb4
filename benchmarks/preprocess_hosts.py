"""Processor time of an episode's conversion on three hosts against one process, both from S3 to S3.

Hosts are namespaces of this machine (tests/support/hosts.py), so this needs root, and cgroups count: every process of
the three nodes (Ray's own, workers, the job's driver) against one process of `rtp preprocess --workers 0`. The S3
server and the command that submits are outside. What starting and ending costs is left out: in every round each side
converts a tiny and a large dataset, and the difference counts. The nodes' time is told apart by kind of process. Both
stores must have the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.command_line import SAMPLE
from tests.support.file_contents import file_contents
from tests.support.host_cluster import HostCluster, host_cluster
from tests.support.hosts import CHECKOUT

HOSTS = 3
REPEATED = 80  # the sample's 18 episodes in a shard: 85 MB, where the mean of Open X-Embodiment's is 500
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


def write_source(folder: Path, shards: int, repeated: int) -> int:
    """A dataset of so many shards, each the sample's first one so many times; its episodes."""
    folder.mkdir(parents=True)
    shutil.copy(SAMPLE / "features.json", folder)
    info = json.loads((SAMPLE / "dataset_info.json").read_text())
    (train,) = [split for split in info["splits"] if split["name"] == "train"]
    length = int(train["shardLengths"][0]) * repeated
    train["shardLengths"] = [str(length)] * shards
    (folder / "dataset_info.json").write_text(json.dumps(info | {"splits": [train]}))
    content = next(SAMPLE.glob("*-train.tfrecord-00000-*")).read_bytes() * repeated  # records follow one another
    for number in range(shards):
        (folder / f"metaworld_sample-train.tfrecord-{number:05d}-of-{shards:05d}").write_bytes(content)
    return length * shards


def words(source: str, out: str) -> list[str]:
    flags = ["--dataset", "metaworld_sample", "--encoder", "hash"]
    return ["preprocess", f"s3://bucket/{source}/1.0.0", f"s3://bucket/{out}", *flags]


@dataclass
class Account:
    """Processor seconds of a group's processes by kind, from what each had taken when it was last seen."""

    group: CpuGroup
    _seen: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)

    def look(self) -> None:
        for number in (self.group.folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):  # it has just ended
                command = Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                after_name = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
                taken_s = (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
                process = number, after_name[19]  # by the time it started, too: numbers come back
                known, _ = self._seen.get(process, ("others of Ray's", 0.0))
                self._seen[process] = kind_of(command) if command else known, taken_s  # one that has ended has no words

    def by_kind(self) -> Counter[str]:
        """With what belongs to no process that was seen as "other"."""
        self.look()
        kinds = Counter[str]()
        for kind, taken_s in list(self._seen.values()):
            kinds[kind] += taken_s
        kinds["other"] = self.group.cpu_s() - kinds.total()
        return kinds

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, processes are looked at twice a second."""
        done = threading.Event()

        def look_on() -> None:
            while not done.wait(0.5):
                self.look()

        thread = threading.Thread(target=look_on)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def kind_of(command: str) -> str:
    """A process of a node by its command line; Ray's own arguments name other programs, and its titles what runs."""
    program, _, rest = command.partition(" ")
    if program.endswith(("raylet", "gcs_server")):
        return program.rpartition("/")[2]
    if command.startswith("ray::"):
        own = program.removeprefix("ray::")
        return own if own.endswith("Agent") or own.startswith(("JobSupervisor", "_StatsActor")) else "workers"
    if "pipelines preprocess" in rest:
        return "driver"
    if "default_worker.py" in rest:
        return "workers"
    own_parts = ("dashboard", "log_monitor", "monitor", "runtime_env")
    return next((part for part in own_parts if part in rest), "others of Ray's")


OF_THE_TASK = ("workers", "driver")


def one_process(cluster: HostCluster, group: CpuGroup, source: str, out: str) -> float:
    """Processor seconds of `rtp preprocess --workers 0`."""
    command = [sys.executable, "-m", "pipelines", *words(source, out), "--workers", "0"]
    variables = {"PYTHONPATH": CHECKOUT} | cluster.services.environment
    with group.joined():
        before = group.cpu_s()
        done = cluster.submitter.run(*command, variables=variables)
        taken_s = group.cpu_s() - before
    assert done.returncode == 0, done.stdout + done.stderr
    return taken_s


def three_hosts(cluster: HostCluster, account: Account, source: str, out: str) -> Counter[str]:
    """Processor seconds of all nodes by kind of process while the job ran."""
    before = account.by_kind()
    with account.kept():
        cluster.rtp(*words(source, out))
    taken = account.by_kind()
    taken.subtract(before)
    return taken


def one_round(cluster: HostCluster, alone: CpuGroup, account: Account, number: int, more: int) -> dict[str, float]:
    """Processor milliseconds of an episode of the `more` that the large dataset has: alone, and by kind of process."""
    one = dict[str, float]()
    three = dict[str, Counter[str]]()
    outs = {name: f"{name}-{number}" for name in ("tiny", "large")}
    for name in outs:
        one[name] = one_process(cluster, alone, name, f"one/{outs[name]}")
        began = time.monotonic()
        three[name] = three_hosts(cluster, account, name, f"three/{outs[name]}")
        seconds = time.monotonic() - began
        objects = cluster.services.objects
        assert file_contents(objects / "one" / outs[name]) == file_contents(objects / "three" / outs[name])
        shown = {kind: round(taken_s, 2) for kind, taken_s in three[name].most_common()}
        all_s = f"three hosts {three[name].total():.2f} within {seconds:.0f} s"
        print(f"{outs[name]}: one process {one[name]:.2f} CPU s, {all_s}: {shown}", flush=True)
    kinds_ms = {kind: 1000 * (three["large"][kind] - three["tiny"][kind]) / more for kind in three["large"]}
    return kinds_ms | {"alone": 1000 * (one["large"] - one["tiny"]) / more}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=6, help="of the large dataset")
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    nodes, alone = (CpuGroup(CGROUPS / f"rtp-{os.getpid()}-{name}") for name in ("nodes", "alone"))
    account = Account(nodes)
    try:
        with (
            tempfile.TemporaryDirectory() as home,
            host_cluster(Path(home), around_nodes=nodes.joined()) as cluster,
        ):
            objects = cluster.services.objects
            tiny = write_source(objects / "tiny/1.0.0", HOSTS, 1)
            more = write_source(objects / "large/1.0.0", flags.shards, REPEATED) - tiny
            three_hosts(cluster, account, "tiny", "first")  # the cluster's first job pays for what later ones find
            rounds = [one_round(cluster, alone, account, number, more) for number in range(flags.rounds)]
    finally:
        for group in (nodes, alone):
            group.remove()
    report(rounds, more)


def report(rounds: list[dict[str, float]], more: int) -> None:
    kinds = sorted({kind for each in rounds for kind in each} - {"alone"})
    all_of = [sum(taken_ms for kind, taken_ms in each.items() if kind != "alone") / each["alone"] for each in rounds]
    task_of = [sum(each.get(kind, 0.0) for kind in OF_THE_TASK) / each["alone"] for each in rounds]
    alone_ms = statistics.median(each["alone"] for each in rounds)
    print(f"CPU ms of an episode: one process {alone_ms:.3f}; three hosts, as shares of that in the same round:")
    for kind in kinds:
        print(f"  {kind:20} {statistics.median(each.get(kind, 0.0) / each['alone'] for each in rounds):6.3f}")
    for what, ratios in (("workers and driver", task_of), ("all processes of the nodes", all_of)):
        print(f"{what}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(json.dumps({"benchmark": "preprocess_hosts", "episodes": more, "rounds": rounds}))


if __name__ == "__main__":
    main()
