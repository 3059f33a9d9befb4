"""Actors that answer: killed ones are asked again, errors come home as themselves, work is spread."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from cluster import remote_workers
from cluster.remote_workers import RemoteWorkers
from cluster.session import RaySession, connect


@pytest.fixture(scope="module", autouse=True)
def own_ray() -> Iterator[None]:
    with connect(RaySession(num_cpus=2)):
        yield


def squares() -> Callable[..., tuple[int, int]]:
    calls = [0]

    def square(number: int, *, wait_s: float = 0.0) -> tuple[int, int]:
        calls[0] += 1
        if number < 0:
            raise ValueError(f"{number} has no root, after {calls[0]} calls")
        time.sleep(wait_s)
        return number * number, os.getpid()

    return square


def test_answers_survive_the_actor_that_was_to_give_them() -> None:
    with closing(RemoteWorkers(squares, count=1, cpus=1)) as workers, ThreadPoolExecutor(1) as pool:
        _, first = workers.ask(2)
        answer = pool.submit(workers.ask, 3, wait_s=1.5)
        time.sleep(0.5)
        os.kill(first, signal.SIGKILL)
        square, second = answer.result(timeout=60)
        assert square == 9 and second != first


def dies(*_: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def deadly() -> Callable[..., int]:
    return dies


def test_a_question_that_ends_every_actor_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_workers, "RETRIES", 1)
    with (
        closing(RemoteWorkers(deadly, count=1, cpus=1)) as workers,
        pytest.raises(ChildProcessError, match=r"a remote reader died 2 times over one batch.*--loader.memory-mb"),
    ):
        workers.ask(1)


def broken() -> Callable[..., int]:
    raise FileNotFoundError("no store at s3://bucket/store")


def test_a_factory_that_fails_says_why() -> None:
    with closing(RemoteWorkers(broken, count=1, cpus=1)) as workers:
        for _ in range(2):
            with pytest.raises(FileNotFoundError, match="no store at s3"):
                workers.ask()


def test_errors_come_home_and_work_is_spread() -> None:
    with closing(RemoteWorkers(squares, count=2, cpus=1)) as workers:
        with pytest.raises(ValueError, match="-1 has no root, after 1 calls"):
            workers.ask(-1)
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda number: workers.ask(number, wait_s=0.3), range(4)))
        assert [square for square, _ in answers] == [0, 1, 4, 9]
        assert len({pid for _, pid in answers}) == 2
