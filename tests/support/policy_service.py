"""A policy service without a server, for tests that hold its model back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.serving.question import Question
from pipelines.serving.service import PolicyService, ServiceConfig
from preprocessing.store.episode_store import EpisodeStore
from tests.support.policy_server import untrained


def serve(opened: EpisodeStore, work: Callable[[PolicyService], Awaitable[Any]], **config: Any) -> Any:
    """What `work` gives with a started service."""

    async def started() -> Any:
        service = PolicyService(untrained(opened), ServiceConfig(**config))
        await service.start()
        try:
            return await work(service)
        finally:
            await service.stop()

    return asyncio.run(started())


@contextmanager
def held(service: PolicyService) -> Iterator[None]:
    """The model's thread is busy inside the block."""
    let_go = threading.Event()
    service.batcher.in_model_thread(lambda: let_go.wait(30) and None)
    try:
        yield
    finally:
        let_go.set()


def asks(frame: object, text: str, **fields: Any) -> Callable[[], Question]:
    return lambda: Question(frame=frame, instruction=text, **fields)


async def waits(service: PolicyService, count: int) -> None:
    """Until so many frames wait for the model."""
    ends = time.monotonic() + 20
    while service.batcher.waiting < count:
        assert time.monotonic() < ends
        await asyncio.sleep(0.005)
