"""Many small reads of a store at once: each waits for an answer over the network, not for a processor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_AT_ONCE = 16


def in_parallel(read: Callable[[int], T], count: int) -> Iterator[T]:
    """read(0), read(1), ... in this order, computed by threads; at most 16 results wait to be taken."""
    ahead: deque[Future[T]] = deque()
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="reads") as pool:
        try:
            for number in range(count):
                if len(ahead) == _AT_ONCE:
                    yield ahead.popleft().result()
                ahead.append(pool.submit(read, number))
            while ahead:
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()
