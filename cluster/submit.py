"""Jobs of a Ray cluster, through its dashboard: submit, follow, ask, stop.

Adds to the Ray Jobs API: a dead address is an error within seconds, another Ray version one before the upload; a broken
connection is resumed without losing or repeating a line of the log; and the outcome has the job's own exit code.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

DASHBOARD_PORT = 8265
_REMEDY = "start the cluster, or give --address its dashboard's URL"
CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S = 10, 60  # a busy head takes its time to answer
OUTAGE_S = 60.0  # a dashboard that is away for longer is given up; the job goes on without it


@dataclass(frozen=True, kw_only=True)
class JobState:
    """The state of a job. `exit_code` is the entrypoint's, once it has ended."""

    job_id: str
    status: str
    ended: bool
    exit_code: int | None
    seconds: float
    command: str
    message: str


class Jobs:
    """The jobs of the cluster whose dashboard is at `address`.

    Raises ConnectionError if none answers, or if the cluster runs another Ray version.
    """

    def __init__(self, address: str) -> None:
        self.address = dashboard_url(address)
        _require_listening(self.address)
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # else RAY_ADDRESS would win over what was asked for
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.WARNING)  # the log is the job's
        try:
            self._client = JobSubmissionClient(self.address)
            _require_same_ray(self.address)
        except AuthenticationError as error:
            raise ConnectionError(
                f"the cluster at {self.address} wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            ) from error
        except (RuntimeError, ValueError, KeyError, requests.RequestException) as error:
            raise ConnectionError(
                f"no Ray dashboard answers at {self.address}: {_first_line(error)}; {_REMEDY}"
            ) from error

    def submit(
        self,
        command: Sequence[str],
        *,
        working_dir: Path,
        env_vars: Mapping[str, str],
        requirements: str | None = None,
    ) -> str:
        """Upload `working_dir` and start `command` there on the head node; the job's id.

        `requirements`: a file in `working_dir` that pip installs from on every node first.
        """
        # `python` is then the interpreter at the place that it has here, or where there is none, the nodes' own.
        path = f"{Path(sys.executable).parent}{os.pathsep}${{PATH}}"
        runtime_env: dict[str, object] = {"working_dir": str(working_dir), "env_vars": {"PATH": path, **env_vars}}
        if requirements is not None:
            runtime_env["pip"] = ["-r ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/" + requirements]
        try:
            return self._client.submit_job(entrypoint=shlex.join(command), runtime_env=runtime_env)
        except (RuntimeError, requests.RequestException) as error:
            raise ConnectionError(
                f"the cluster at {self.address} did not take the job: {_first_line(error)}"
            ) from error

    def state(self, job_id: str) -> JobState:
        """Raises ValueError for a job that the cluster does not know."""
        try:
            info = self._client.get_job_info(job_id)
        except RuntimeError as error:
            if "status code 404" in str(error):
                raise ValueError(f"the cluster at {self.address} knows no job {job_id!r}") from error
            raise ConnectionError(f"the cluster at {self.address} cannot tell: {_first_line(error)}") from error
        except requests.RequestException as error:
            raise ConnectionError(f"no Ray dashboard answers at {self.address} any more") from error
        return _state(job_id, info)

    def stop(self, job_id: str, *, timeout_s: float = 30) -> JobState:
        """Ask the job to end, and wait for that; it is killed if it does not."""
        state = self.state(job_id)
        if not state.ended:
            self._client.stop_job(job_id)
        ends = time.monotonic() + timeout_s
        while not state.ended and time.monotonic() < ends:
            time.sleep(0.5)
            state = self.state(job_id)
        return state

    def follow(self, job_id: str, write: Callable[[str], None]) -> JobState:
        """Hand the job's log to `write` as it grows, until the job has ended; how it ended."""
        self.state(job_id)  # an unknown one is named at once
        log = _Log(write)
        lost_since = None
        while True:
            try:
                asyncio.run(self._tail(job_id, log))
                state = self.state(job_id)
                if state.ended:
                    return state
                lost_since = None
            except (OSError, RuntimeError, aiohttp.ClientError) as error:
                now = time.monotonic()
                lost_since = lost_since or now
                if now - lost_since > OUTAGE_S:
                    raise ConnectionError(
                        f"the dashboard at {self.address} has been away for {OUTAGE_S:.0f} s ({_first_line(error)}); "
                        f"the job {job_id} goes on without it"
                    ) from error
            time.sleep(1)

    async def _tail(self, job_id: str, log: _Log) -> None:
        log.begin()
        async for piece in self._client.tail_job_logs(job_id):
            log.add(piece)


class _Log:
    """A log that begins anew at every connection; what was written before is not written again."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._written = 0
        self._position = 0

    def begin(self) -> None:
        self._position = 0

    def add(self, piece: str) -> None:
        new = piece[max(self._written - self._position, 0) :]
        self._position += len(piece)
        self._written = max(self._written, self._position)
        if new:
            self._write(new)


def dashboard_url(address: str) -> str:
    """http://HOST:PORT of a dashboard, from that or HOST[:PORT]. Raises ValueError for another kind of address."""
    url = urlsplit(address if "://" in address else f"http://{address}")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"--address {address} is not a dashboard's: give http://HOST:{DASHBOARD_PORT}")
    try:
        port = url.port or DASHBOARD_PORT
    except ValueError:
        raise ValueError(f"--address {address} has no valid port: give http://HOST:{DASHBOARD_PORT}") from None
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{url.scheme}://{host}:{port}"


def _require_listening(address: str) -> None:
    url = urlsplit(address)
    try:
        socket.create_connection((url.hostname or "", url.port or DASHBOARD_PORT), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConnectionError(f"no Ray dashboard answers at {address}: {error.strerror or error}; {_REMEDY}") from error


def _require_same_ray(address: str) -> None:
    token = os.environ.get("RAY_AUTH_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = requests.get(f"{address}/api/version", headers=headers, timeout=ANSWER_TIMEOUT_S)
    if answer.status_code in (401, 403):
        return  # the token is in a file that only Ray knows of; cluster/preflight.py compares on the cluster
    theirs = str(answer.json()["ray_version"])
    if theirs.split(".")[:2] != ray.__version__.split(".")[:2]:
        raise ConnectionError(
            f"the cluster at {address} runs Ray {theirs}, here is Ray {ray.__version__}: start it from an environment "
            f"made with this project's constraints.txt"
        )


def _state(job_id: str, info: JobDetails) -> JobState:
    ended = JobStatus(info.status).is_terminal()
    start_ms, now_ms = info.start_time or 0, info.end_time or int(time.time() * 1000)
    return JobState(
        job_id=job_id,
        status=str(JobStatus(info.status).value),
        ended=ended,
        exit_code=info.driver_exit_code,
        seconds=(now_ms - start_ms) / 1000 if start_ms else 0.0,
        command=info.entrypoint,
        message=info.message or "",
    )


def _first_line(error: BaseException) -> str:
    """The line that says what is wrong: the last of a traceback that the server sent, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if "Traceback" in str(error) else lines[0]).rstrip(".") if lines else type(error).__name__
