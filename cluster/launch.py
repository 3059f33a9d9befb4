"""Start a training on the workers of a Ray cluster, restart it when workers die, and return its final metrics.

Ray does not handle the checkpoints: at every start, the first or one after a failure, the training function reads the
latest from its own folder (cluster/storage.py).
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import torch

from cluster.context import RayContext, WorkerContext
from cluster.interfaces import chosen, torch_config
from cluster.placement import Actors, Demand, require_room
from cluster.quick_imports import quick_imports, resume_collection
from cluster.session import RaySession, connect

if TYPE_CHECKING:
    from ray.train import UserCallback
    from ray.train.torch import TorchTrainer

T = TypeVar("T")
Config = TypeVar("Config")
Value = TypeVar("Value")

TrainFunction: TypeAlias = Callable[[WorkerContext, Config], Mapping[str, Value] | None]

# Ray Train's defaults take 15 s to start two workers and 2 s to see the end of a run; these take 9 s and 0.1 s.
FAST_START = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
NO_ACTORS = Actors()
SMALL = 16  # workers; a larger group is polled at Ray's own pace


@dataclass(frozen=True, kw_only=True)
class RayLaunch:
    """Where and on how many workers to train."""

    num_workers: int | tuple[int, int] = 1
    """A number, or LEAST MOST: training then runs on as many workers as there are nodes for. A node that joins is used
    after the next check, one that leaves counts as a failure (give max_failures); either way training continues from
    the newest checkpoint."""
    use_gpu: bool = False
    """One GPU for each worker."""
    cpus_per_worker: int = 1
    """CPU cores of each worker."""
    address: str | None = None
    """Ray cluster, as auto or host:6379; default: RAY_ADDRESS, else this machine."""
    max_failures: int = 0
    """How often the workers are started again after one died; -1 for no limit."""
    storage_path: str | None = None
    """Folder for the small state that Ray Train keeps; on several nodes a shared path or URL."""
    collective_timeout_s: float = 1800
    """Seconds that a worker waits for the others before it gives up."""
    hang_timeout_s: float = 1800
    """Seconds without a micro-batch or an agreement after which a worker is ended as hung."""
    resize_check_s: float = 60
    """Seconds between checks for nodes that have joined, if num_workers is LEAST MOST."""
    wait_for_nodes_s: float | None = None
    """Seconds to wait for the nodes of an autoscaler, if the cluster has no room for the workers yet; default:
    RTP_WAIT_FOR_NODES_S, which the files of rtp cluster render set, else 0."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most or self.cpus_per_worker < 1:
            raise ValueError(
                f"num_workers = {self.num_workers}, cpus_per_worker = {self.cpus_per_worker}: needs "
                f"1 <= least <= most workers and at least 1 CPU each"
            )
        if self.max_failures < -1:
            raise ValueError(f"max_failures = {self.max_failures}: must be at least 0, or -1 for no limit")
        if self.wait_for_nodes_s is not None and not 0 <= self.wait_for_nodes_s < math.inf:
            raise ValueError(f"wait_for_nodes_s = {self.wait_for_nodes_s}: must be finite and at least 0 seconds")
        for name in ("collective_timeout_s", "hang_timeout_s", "resize_check_s"):
            if not 1 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)}: must be finite and at least 1 second")

    @property
    def least(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def sizes(self) -> range:
        """Every number of workers that the training may have at some time."""
        return range(self.least, self.most + 1)

    def demand(self, actors: Actors) -> Demand:
        """The least that the cluster must have."""
        gpus = 1 if self.use_gpu else 0
        return Demand(workers=self.least, cpus=self.cpus_per_worker, gpus=gpus, actors=actors)

    @contextmanager
    def connected(self, actors: Actors = NO_ACTORS) -> Iterator[None]:
        """Be connected to the Ray that the workers run on, and the actors that each of them starts."""
        if self.most <= SMALL:
            for name, value in FAST_START.items():
                os.environ.setdefault(name, value)
        cpus = self.cpus_per_worker + actors.per_worker * actors.cpus
        num_cpus = max(os.cpu_count() or 1, self.most * cpus)
        with connect(RaySession(address=self.address, num_cpus=num_cpus)):
            yield


@dataclass(frozen=True, kw_only=True)
class _Task(Generic[Config, Value]):
    """What every worker is given."""

    function: TrainFunction[Config, Value]
    config: Config
    launch: RayLaunch


def launch(
    train_function: TrainFunction[Config, Value],
    train_config: Config,
    launch: RayLaunch,
    *,
    actors: Actors = NO_ACTORS,
    callbacks: Sequence[UserCallback] = (),
) -> dict[str, Value | float]:
    """Run train_function(context, train_config) on every worker; returns rank 0's last reported metrics and result.

    Raises the worker's own ValueError, OSError or ArithmeticError if that ended the training, else ChildProcessError
    with Ray's reason. actors: what each worker starts beside itself, for which there must be room. callbacks: Ray
    Train's, such as the one that passes rank 0's reports on to Ray Tune.
    """
    with launch.connected(actors), tempfile.TemporaryDirectory() as scratch:
        require_room(launch.demand(actors), wait_s=launch.wait_for_nodes_s)
        task = _Task(function=train_function, config=train_config, launch=launch)
        return _fit(task, launch.storage_path or scratch, callbacks)


def _fit(task: _Task[Config, Value], storage_path: str, callbacks: Sequence[UserCallback]) -> dict[str, Value | float]:
    with quick_imports():
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError

    launch = task.launch
    resources = {"CPU": launch.cpus_per_worker, **({"GPU": 1} if launch.use_gpu else {})}
    trainer = _trainer_class()(
        _work,
        train_loop_config={"task": task},
        torch_config=torch_config(timeout_s=int(launch.collective_timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=launch.num_workers,
            use_gpu=launch.use_gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=launch.resize_check_s,
        ),
        run_config=RunConfig(
            storage_path=storage_path,
            failure_config=FailureConfig(max_failures=launch.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=list(callbacks),
        ),
    )
    try:
        result = _beside_the_main_thread(trainer.fit)
    except TrainingFailedError as error:
        raise _cause(error) from error
    return dict(result.return_value or {})


def _trainer_class() -> type[TorchTrainer]:
    """Ray Train's, without the process that hands out Ray's datasets: of them there are none here."""
    with quick_imports():
        from ray.train.torch import TorchTrainer
        from ray.train.v2._internal.callbacks.datasets import DatasetsCallback

    class WithoutDatasets(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]
            return [callback for callback in callbacks if not isinstance(callback, DatasetsCallback)]

    return WithoutDatasets


def _beside_the_main_thread(fit: Callable[[], T]) -> T:
    """Call `fit` in a thread: in the main one Ray Train takes SIGINT and ends the workers without a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        return fit()
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(fit())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True, name="fit").start()
    return outcome.result()


def _work(arguments: Mapping[str, _Task[Config, Value]]) -> dict[str, Value | float]:
    """One worker."""
    resume_collection()
    task, launch = arguments["task"], arguments["task"].launch
    torch.set_num_threads(launch.cpus_per_worker)
    logging.getLogger().setLevel(logging.WARNING)  # Ray's processes are at ERROR (see session.py)
    context = RayContext(timeout_s=launch.collective_timeout_s, hang_timeout_s=launch.hang_timeout_s)
    if context.world_size > 1 and context.local_rank == 0:  # one line per node
        print(f"rank {context.rank} on {socket.gethostname()}: {chosen()}", file=sys.stderr, flush=True)
    try:
        returned = task.function(context, task.config)
        return {**context.metrics, **(returned or {})}
    finally:
        context.close()


def _cause(error: Exception) -> Exception:
    """The first worker's own ValueError, OSError or ArithmeticError, which the user can mend; else Ray's reason."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    for rank in sorted(failures):
        failure: BaseException | None = failures[rank]
        while failure is not None:
            if isinstance(failure, ValueError | OSError | ArithmeticError):
                return failure
            failure = getattr(failure, "cause", None) or failure.__cause__
    who = "the training's controller"
    for rank in sorted(failures, reverse=True):
        who = f"the worker of rank {rank}"
        error = getattr(failures[rank], "health_check_failure", failures[rank])
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = lines[-1] if "Traceback" in str(error) else lines[0]
    remedy = "--resume continues it, and with launch.max_failures Ray starts such workers again"
    return ChildProcessError(f"{who} failed, and with it the training: {reason.rstrip('.')}; {remedy}")
