"""What a training loop knows of the other workers: its rank, its device and a few small agreements between ranks.

`LocalContext` is one process without a process group; `TorchrunContext` is one of several processes that torchrun (or
a test) started; `RayContext` is a Ray Train worker. None of them exchanges gradients: the engine does that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist

from cluster.watchdog import Watchdog

T = TypeVar("T")


class WorkerContext(Protocol):
    """One worker's view of the run.

    `report`, `barrier` and the agreements `any`, `ask_any`, `gather` and `broadcast` are collective: every rank calls
    them.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    def report(self, metrics: Mapping[str, float]) -> None:
        """Pass the present metrics to the launcher of the run; rank 0's are kept."""
        ...

    def barrier(self) -> None:
        """Wait until every rank is here."""
        ...

    def any(self, flag: bool) -> bool:
        """True on every rank if any rank says True."""
        ...

    def ask_any(self, flag: bool) -> Callable[[], bool]:
        """As `any`, without waiting: the function returned waits for the other ranks and gives the answer."""
        ...

    def gather(self, value: T) -> list[T]:
        """The small picklable value of every rank, by rank, on every rank."""
        ...

    def broadcast(self, value: T) -> T:
        """Rank 0's small picklable value, on every rank; the other ranks' values are ignored."""
        ...

    def fork(self) -> WorkerContext:
        """A context for another thread, whose agreements cannot be mixed up with this one's. Collective."""
        ...

    def beat(self) -> None:
        """Tell the watchdog, if there is one, that this worker is alive and at work."""
        ...

    def close(self) -> None:
        """Leave the run; the context cannot be used afterwards."""
        ...


def default_device(local_rank: int = 0) -> torch.device:
    """The GPU of this local rank, or the CPU where there is none."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


class LocalContext:
    """One process, no process group: every agreement is with oneself."""

    rank = 0
    world_size = 1
    local_rank = 0

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = default_device() if device is None else torch.device(device)
        self.metrics: dict[str, float] = {}

    def report(self, metrics: Mapping[str, float]) -> None:
        self.metrics.update(metrics)

    def barrier(self) -> None:
        pass

    def any(self, flag: bool) -> bool:
        return flag

    def ask_any(self, flag: bool) -> Callable[[], bool]:
        return lambda: flag

    def gather(self, value: T) -> list[T]:
        return [value]

    def broadcast(self, value: T) -> T:
        return value

    def fork(self) -> LocalContext:
        return self

    def beat(self) -> None:
        pass

    def close(self) -> None:
        pass


def _agreement_group(timeout: timedelta) -> dist.ProcessGroup:
    """A gloo group of all ranks: agreements must neither wait behind nor reorder the gradients on NCCL."""
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group


class TorchrunContext:
    """One of several processes with torchrun's environment: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT."""

    def __init__(self, device: torch.device | str | None = None, *, timeout_s: float = 1800) -> None:
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.device = default_device(self.local_rank) if device is None else torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._timeout = timedelta(seconds=timeout_s)
        self._owns_group = not dist.is_initialized()
        if self._owns_group:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=self._timeout)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.metrics: dict[str, float] = {}
        self._group = _agreement_group(self._timeout)

    def report(self, metrics: Mapping[str, float]) -> None:
        self.metrics.update(metrics)

    def barrier(self) -> None:
        self.gather(None)

    def any(self, flag: bool) -> bool:
        return self.ask_any(flag)()

    def ask_any(self, flag: bool) -> Callable[[], bool]:
        # An all-reduce of one byte, not a gather: the loop asks this at every step.
        votes = torch.tensor([flag], dtype=torch.uint8)
        work = dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

        def answer() -> bool:
            work.wait()  # type: ignore[union-attr]
            self.beat()
            return bool(votes.item())

        return answer

    def gather(self, value: T) -> list[T]:
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        self.beat()
        return values

    def broadcast(self, value: T) -> T:
        # No beat, which would start the watchdog: rank 0 also decides before a model is built, which takes its time.
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def fork(self) -> WorkerContext:
        return _Forked(self)

    def beat(self) -> None:
        pass

    def close(self) -> None:
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()


class _Forked(TorchrunContext):
    """The same worker with a gloo group of its own, for another thread."""

    def __init__(self, parent: TorchrunContext) -> None:
        self.rank, self.world_size = parent.rank, parent.world_size
        self.local_rank, self.device, self.metrics = parent.local_rank, parent.device, {}
        self._timeout, self._owns_group = parent._timeout, False
        self._group = _agreement_group(self._timeout)


class RayContext(TorchrunContext):
    """A Ray Train worker. Ray has set up the process group (gloo on CPU, NCCL on GPU) and torchrun's environment.

    hang_timeout_s: end this worker if it sends no heartbeat for this long; Ray then starts the workers again.
    """

    def __init__(self, *, timeout_s: float = 1800, hang_timeout_s: float = 1800) -> None:
        import ray.train.torch

        self._watchdog = Watchdog(hang_timeout_s)
        super().__init__(ray.train.torch.get_device(), timeout_s=timeout_s)

    def report(self, metrics: Mapping[str, float]) -> None:
        """As above; Ray passes them on to Tune. Waits for all ranks, so a fast loop does not report every step."""
        import ray.train

        super().report(metrics)
        ray.train.report(dict(metrics))
        self.beat()

    def beat(self) -> None:
        self._watchdog.beat()

    def close(self) -> None:
        self._watchdog.close()
        super().close()
