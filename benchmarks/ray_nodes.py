"""Two Ray nodes on this machine, and `rtp train` on them: what the chaos and elastic benchmarks disturb.

Only processes that were started here are ended, by their ids.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster.session import RaySession, connect
from cluster.storage import SAVING
from pipelines.training.run_files import METRICS, read_metrics
from preprocessing.convert import ConvertConfig, convert

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLE = REPOSITORY / "examples/metaworld_sample/1.0.0"
CHECKPOINT_EVERY, EVALUATE_EVERY = 10, 7
POLL_S = 0.004
PATIENCE_S = 180


@dataclass(kw_only=True)
class Nodes:
    """Two nodes of a Ray cluster, with so many CPUs each."""

    scratch: Path
    cpus: int = 1
    port: int = 0
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    head: subprocess.Popen[bytes] | None = None
    second: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0"}
        quiet = {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{self.scratch}/mlflow.db"}
        return {**os.environ, **ours, **quiet, "PYTHONPATH": str(REPOSITORY)}

    def answers(self) -> bool:
        """Whether somebody listens at the head's port."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def start_head(self) -> None:
        self.port = self.port or _free_port()
        self.head = self._start("--head", f"--port={self.port}", "--include-dashboard=false")

    def start_second(self) -> None:
        self.second = self._start(f"--address={self.address}")

    def _start(self, *where: str) -> subprocess.Popen[bytes]:
        ports = [f"--dashboard-agent-listen-port={_free_port()}", f"--metrics-export-port={_free_port()}"]
        size = [f"--num-cpus={self.cpus}", "--object-store-memory=100000000", f"--temp-dir={self.scratch}/ray"]
        command = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            *where,
            *ports,
            *size[: 3 if "--head" in where else 2],
        ]
        with Path(self.scratch, "ray.log").open("ab") as log:
            return subprocess.Popen([*command, "--block"], env=self.environment(), stdout=log, stderr=log)

    def kill_second(self) -> None:
        """SIGKILL to its raylet: the node is gone."""
        assert self.second is not None
        for process in _family(self.second.pid):
            if process.name() == "raylet":
                process.send_signal(signal.SIGKILL)
        self.second.wait(timeout=PATIENCE_S)  # `ray start --block` sees it and clears up

    def kill_head(self) -> None:
        """SIGKILL to every process of the head."""
        assert self.head is not None
        for process in _family(self.head.pid):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.head.wait(timeout=PATIENCE_S)

    def workers(self) -> list[psutil.Process]:
        """The processes that train."""
        started = [node.pid for node in (self.head, self.second) if node is not None]
        everyone = [process for pid in started for process in _family(pid)]
        return [process for process in everyone if "RayTrainWorker" in _command(process)]

    def stop(self) -> None:
        for node in (self.second, self.head):
            for process in _family(node.pid) if node is not None else []:
                process.kill()


@contextmanager
def running_nodes(scratch: Path, count: int, cpus: int = 1) -> Iterator[Nodes]:
    """A cluster of one or two nodes for the block. Its processes, and only they, are ended afterwards."""
    nodes = Nodes(scratch=scratch, cpus=cpus)
    nodes.start_head()
    try:
        until(nodes.answers, "Ray's head does not answer")
        if count == 2:
            nodes.start_second()
        os.environ.update(nodes.environment())
        import ray  # not before: it reads the token as it is imported

        with connect(RaySession(address=nodes.address, log_to_driver=False)):
            until(lambda: ray.cluster_resources().get("CPU") == count * cpus, "a node does not join")
        yield nodes
    finally:
        nodes.stop()


class Training:
    """`rtp train` in a process of its own, on the nodes, into `output`."""

    def __init__(
        self,
        nodes: Nodes,
        stores: list[str],
        output: Path,
        steps: int,
        launch: Mapping[str, object],
        flags: Sequence[str] = (),
    ) -> None:
        self._nodes, self._output = nodes, output
        self._dice = random.Random(steps)
        loop = {"steps": steps, "checkpoint_every": CHECKPOINT_EVERY, "evaluate_every": EVALUATE_EVERY}
        loop |= {"log_every": 1}
        launch = {**launch, "max_failures": -1, "address": nodes.address}
        self._command = [
            *(sys.executable, "-m", "pipelines", "train", "rt1_tiny"),
            *("--data", stores[0], "--validation", stores[1], "--output", str(output)),
            *("--engine", "DeepSpeedEngineConfig", "--engine.zero.stage", "1"),
            *(word for name, value in loop.items() for word in (f"--loop.{name}", str(value))),
            *("--loop.log_samples", *flags),
            *("--launch", "RayLaunch", "--launch.storage_path", f"{nodes.scratch}/ray-train"),
            *(word for name, value in launch.items() for word in (f"--launch.{name}", *str(value).split())),
        ]
        self.driver = self._run()

    def resume(self) -> None:
        """The same command with --resume, after the driver has ended."""
        self.driver = self._run("--resume")

    def _run(self, *more: str) -> subprocess.Popen[bytes]:
        with Path(f"{self._output}.log").open("ab") as log:
            environment = self._nodes.environment()
            return subprocess.Popen([*self._command, *more], env=environment, stdout=log, stderr=log)

    def kill(self, victim: str) -> None:
        """Kill it, put a new one in its place where nobody else does, and wait until the old workers are gone."""
        before = self._nodes.workers()
        if victim == "worker" and before:
            self._dice.choice(before).kill()
        elif victim == "raylet":
            self._nodes.kill_second()
            self._nodes.start_second()
        elif victim == "driver":
            self.driver.kill()
            self.driver.wait()
            self.resume()
        until(lambda: not any(map(_alive, before)), f"workers outlived the {victim}")

    def last_step(self) -> int:
        return max((line["step"] for line in read_metrics(self._output / METRICS)), default=0)

    def wait_for_step(self, step: int) -> None:
        until(lambda: self.last_step() >= step, f"step {step} is not reached", self.driver)

    def wait_for_moment(self, moment: str) -> bool:
        """Whether it came; a training that is being started again may not reach it soon."""
        began = time.time()
        met = {"any": lambda: True, "save": lambda: self._saves(began), "evaluation": self._evaluates}[moment]
        while not met():
            if time.time() - began > PATIENCE_S:
                return False
            time.sleep(POLL_S)
        return True

    def _saves(self, since: float) -> bool:
        """Not by what an earlier kill left."""
        folders = (self._output / "checkpoints").glob(f"{SAVING}*")
        with suppress(FileNotFoundError):  # published meanwhile
            return any(folder.stat().st_mtime > since for folder in folders)
        return False

    def _evaluates(self) -> bool:
        lines = read_metrics(self._output / METRICS)
        return bool(lines) and lines[-1]["step"] % EVALUATE_EVERY == 0 and "loss" in lines[-1]

    def wait_for_progress(self) -> int:
        """The first step that is logged from now on."""
        began = time.time()
        fresh: list[int] = []

        def seen() -> bool:
            fresh[:] = [
                line["step"] for line in read_metrics(self._output / METRICS) if line["time"] > began and "loss" in line
            ]
            return bool(fresh)

        until(seen, "training does not go on", self.driver)
        return fresh[0]

    def finish(self) -> None:
        if self.driver.wait(timeout=20 * PATIENCE_S) != 0:
            raise SystemExit(f"the training failed: {_tail(Path(f'{self._output}.log'))}")


def until(condition: Callable[[], bool], complaint: str, driver: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        ended = driver is not None and driver.poll() is not None  # looked at first: its last act may meet the condition
        if condition():
            return
        if driver is not None and ended:
            raise SystemExit(f"the driver ended with exit code {driver.returncode}: {complaint}")
        if time.monotonic() > deadline:
            raise SystemExit(f"{complaint} within {PATIENCE_S} s")
        time.sleep(POLL_S)


def store(split: str, scratch: str) -> str:
    return convert(str(SAMPLE), f"{scratch}/stores", ConvertConfig(split=split, encoder="hash", workers=0)).store


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _tail(log: Path) -> str:
    return " ".join(log.read_text().splitlines()[-3:])
