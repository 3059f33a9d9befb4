"""One connection to Ray per process: to a private Ray on this machine, or to a cluster by address.

A connection that exists already is used and left open; a Ray that is started here is shut down at the end.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cluster.quick_imports import defer_collection, quick_imports

MEGABYTE = 10**6
ANSWER_S = 10.0  # in which the head of a cluster must answer
GPUS_HIDDEN = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
"""For the environment of workers: Ray 2.60 lets tasks and actors that ask for no GPU see them all, and torch in them
would open a context on the first, some 0.5 GB of its memory each."""
LOST_NODES_FOUND = {"RAY_grpc_client_keepalive_time_ms": "65000", "RAY_grpc_client_keepalive_timeout_ms": "20000"}
"""Ray notices after 420 s that a node which vanished from the network will not answer for the task that it was given;
with these it does after 85 s. Its servers take pings once a minute at most, and cut off whoever sends more."""
_LONGEST_FOLDER = 36  # bytes: Ray adds up to 68 for its sockets, and the system allows 107 in all (103 on a Mac)


@dataclass(frozen=True, kw_only=True)
class RaySession:
    """How to reach Ray.

    address: of a running cluster ("auto", "host:6379"); None: RAY_ADDRESS if it is set (as inside `ray job submit`),
        else a Ray of our own on this machine, to which the rest applies.
    num_cpus: logical CPUs, by default those of the machine; more than there are is allowed.
    object_store_mb: shared memory for objects between processes.
    """

    address: str | None = None
    num_cpus: int | None = None
    object_store_mb: int = 300
    dashboard: bool = False
    log_to_driver: bool = True


def find_lost_nodes_sooner() -> None:
    """For a process that has not imported Ray yet, which reads its settings then; what is set already stays."""
    for name, value in LOST_NODES_FOUND.items():
        os.environ.setdefault(name, value)


def cluster_address(address: str | None) -> str | None:
    """The cluster to use: `address`, else RAY_ADDRESS; None for a Ray of our own on this machine."""
    return address or os.environ.get("RAY_ADDRESS")


@contextmanager
def connect(session: RaySession) -> Iterator[None]:
    """Be connected to Ray inside the block.

    Raises ConnectionError (an OSError) within seconds if the address does not answer, ValueError if it is none.
    """
    with quick_imports():
        import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = cluster_address(session.address)
    with _signals_kept():
        if address is None:
            _start(session)
        else:
            _join(address, session)
    try:
        yield
    finally:
        ray.shutdown()


def _start(session: RaySession) -> None:
    import ray

    # Ray protects a cluster with a token. One of our own keeps it out of the home folder, where it would lock the
    # user's next `ray start` and `ray job submit` out of clusters without a token.
    if os.environ.get("RAY_AUTH_MODE", "token") == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    _keep_sockets_short()
    with _import_path_inherited(), _on_loopback(), _own_log_kept(), _start_told():
        ray.init(
            address="local",
            num_cpus=session.num_cpus,
            object_store_memory=session.object_store_mb * MEGABYTE,
            include_dashboard=session.dashboard,
            log_to_driver=session.log_to_driver,
            logging_level=logging.ERROR,
            # Without a dashboard Ray Train's helpers warn every second that they cannot ask it.
            logging_config=ray.LoggingConfig(log_level="ERROR"),
            runtime_env={"worker_process_setup_hook": f"{__name__}.prepare_process", "env_vars": GPUS_HIDDEN},
        )


@contextmanager
def _own_log_kept() -> Iterator[None]:
    """Ray's choice of level and handlers is for its own processes, not for this one, also where it does not start."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Inside, Ray takes 127.0.0.1 for this machine's address, so that its processes listen there alone.

    So it does by itself on a Mac and on Windows; on Linux it would listen on every interface. Ray's processes read the
    variable when they start, this one has read it when it imported Ray.
    """
    from ray._private import ray_constants

    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    variable = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(name)
        if variable is not None:
            os.environ[name] = variable


@contextmanager
def _start_told() -> Iterator[None]:
    """Ray's own errors where it does not come up ("The current node timed out during startup") as one sentence."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ChildProcessError(
            f"Ray did not start on this machine ({reason:.200}): try again when it is less busy, or do without Ray "
            f"(rtp train ... --launch InProcess, rtp preprocess ... --workers 0)"
        ) from error


def _keep_sockets_short() -> None:
    """Where TMPDIR is too long for Ray's sockets, they lie below /tmp. Raises ValueError if that cannot be."""
    variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(variable, "/tmp")
    if len(os.fsencode(folder)) <= _LONGEST_FOLDER:
        return
    if variable == "TMPDIR" and os.access("/tmp", os.W_OK | os.X_OK):
        os.environ["RAY_TMPDIR"] = "/tmp"
        return
    raise ValueError(
        f"{variable} is too long for Ray's sockets ({folder}, at most {_LONGEST_FOLDER} letters): set RAY_TMPDIR to a "
        f"shorter folder that can be written to, such as /dev/shm"
    )


@contextmanager
def on_demand(session: RaySession) -> Iterator[Callable[[], None]]:
    """A function that connects when it is first called, for as long as the block lasts."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(connect(session))


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM, to exit with code 15; the handler before it is restored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


_HELPER = "ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client"


def prepare_process() -> None:
    """In every process of our own Ray."""
    import ray

    defer_collection()

    # Where several people's Rays run on one machine, Ray's helpers would not know theirs.
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    # On a busy machine this prints a traceback, with the advice to ignore it, each time it waits longer than 5 s.
    logging.getLogger(_HELPER).setLevel(logging.ERROR)


def _join(address: str, session: RaySession) -> None:
    import ray

    try:
        _require_answer(address)
        ray.init(
            address=address,
            log_to_driver=session.log_to_driver,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": GPUS_HIDDEN, **_shipped_packages()},
        )
    except ValueError as error:
        if "Invalid address format" not in str(error):
            raise
        source = "" if session.address else " (RAY_ADDRESS)"
        raise ValueError(f"{address!r}{source} is no address of a Ray cluster: give auto or 127.0.0.1:6379") from error
    except (OSError, RuntimeError) as error:
        source = "" if session.address else " (RAY_ADDRESS)"
        other = "leave the address out" if session.address else "unset RAY_ADDRESS"
        remedy = f"; start it, or {other} to use this machine alone"
        raise ConnectionError(f"no Ray cluster answers at {address!r}{source}: {error}{remedy}") from error


def _require_answer(address: str) -> None:
    """Raise OSError or ValueError within ANSWER_S unless something that could be Ray's head listens at the address.

    Ray itself asks a dead address for minutes, and what answers in another protocol for longer. Addresses without a
    port, such as "auto", are left to Ray: it finds those on this machine at once.
    """
    url = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host, port = url.hostname, url.port
    except ValueError:
        raise ValueError(f"{address!r} is no address of a Ray cluster: its port is not a number") from None
    if url.scheme in ("http", "https"):
        raise ValueError(f"{address} is a dashboard's address: give the head's, such as {host}:6379, or use rtp submit")
    if host is None or port is None:
        return
    socket.create_connection((host, port), timeout=ANSWER_S).close()
    if os.environ.get("RAY_USE_TLS", "0") == "0":
        _require_grpc(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def _require_grpc(target: str) -> None:
    import grpc

    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError:
            raise TimeoutError(f"what listens there is not Ray, or has not answered within {ANSWER_S:.0f} s") from None


@contextmanager
def _import_path_inherited() -> Iterator[None]:
    """Processes that are started inside import the same packages as this one, from a source checkout too."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(os.path.abspath(path) for path in sys.path))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _shipped_packages() -> dict[str, list[str]]:
    """For a cluster: the packages of a source checkout, unless a submitted job has brought them already."""
    root = Path(__file__).resolve().parents[1]
    if root.name in ("site-packages", "dist-packages") or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return {}
    return {"py_modules": sorted(str(path.parent) for path in root.glob("*/__init__.py"))}
