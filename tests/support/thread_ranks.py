"""Ranks that are threads of this process, of which one runs at a time: for code that is not safe in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")


class Ranks:
    """`run(work)` calls `work(rank)` on every rank; inside, torch.distributed joins the threads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._turn = threading.Lock()
        self._all = threading.Barrier(count, timeout=600)
        self._given: dict[int, Tensor] = {}
        self._rank = threading.local()

    def run(self, work: Callable[[int], Result]) -> list[Result]:
        """The results by rank. An error of a rank is raised here."""
        results: list[Any] = [None] * self.count
        errors: list[BaseException] = []

        def of(rank: int) -> None:
            self._rank.number = rank
            try:
                with self._turn:
                    results[rank] = work(rank)
            except BaseException as error:
                errors.append(error)
                self._all.abort()

        with ExitStack() as stack:
            fakes: dict[str, Callable[..., Any]] = {
                "is_initialized": lambda: True,
                "get_world_size": lambda *_: self.count,
                "all_reduce": self._all_reduce,
                "all_gather_into_tensor": self._all_gather,
            }
            for name, fake in fakes.items():
                stack.enter_context(patch.object(dist, name, fake))
            threads = [threading.Thread(target=of, args=(rank,)) for rank in range(self.count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return results

    def _of_all(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, once all have given theirs."""
        self._given[self._rank.number] = tensor.detach().clone()
        self._turn.release()
        self._all.wait()
        found = [self._given[rank] for rank in range(self.count)]
        self._all.wait()
        self._turn.acquire()
        return found

    def _all_reduce(self, tensor: Tensor) -> None:
        tensor.copy_(torch.stack(self._of_all(tensor)).sum(0))

    def _all_gather(self, out: Tensor, tensor: Tensor) -> None:
        out.copy_(torch.cat(self._of_all(tensor)))
