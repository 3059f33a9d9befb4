"""One process at a time moves an alias: slow holders, dead ones, and two who find a dead one's lock at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.publishing import registry_lock
from pipelines.publishing.registry_lock import FRESH_S, STALE_S, exclusive
from pipelines.tracking.mlflow_run import connect

LOCK = "arm.champion.lock"


class Clock:
    """Time as the lock sees it: it stands still, but for what a sleep adds. Holders show signs of life in real time."""

    def __init__(self) -> None:
        self.now_s, self.slept_s = 0.0, 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, _: float) -> None:
        self.now_s += self.slept_s
        time.sleep(0.002)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(registry_lock, "time", clock)
    monkeypatch.setattr(registry_lock, "BEAT_S", 0.01)
    return clock


class Answer(Exception):
    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.error_code = code


class Registry:
    """Registered models as MLflow's stores keep them: names are unique, and every call is atomic."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, str]] = {}
        self._one = threading.Lock()

    def create_registered_model(self, name: str, tags: dict[str, str], description: str = "") -> None:
        with self._one:
            if name in self.models:
                raise Answer("RESOURCE_ALREADY_EXISTS")
            self.models[name] = dict(tags)

    def get_registered_model(self, name: str) -> Any:
        with self._one:
            return SimpleNamespace(tags=dict(self._known(name)))

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        with self._one:
            self._known(name)[key] = value

    def delete_registered_model(self, name: str) -> None:
        with self._one:
            self._known(name)
            del self.models[name]

    def _known(self, name: str) -> dict[str, str]:
        if name not in self.models:
            raise Answer("RESOURCE_DOES_NOT_EXIST")
        return self.models[name]


class Hooked:
    """A client that counts its calls, and does something before a certain one."""

    def __init__(self, registry: Registry, then: Callable[[], None] = lambda: None) -> None:
        self._registry, self._then = registry, then
        self.calls, self.at = 0, -1

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._registry, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.at:
                self._then()
            return real(*args, **kwargs)

        return call

    def polled(self) -> None:
        """Wait until some more calls were made."""
        enough = self.calls + 6
        while self.calls < enough:
            time.sleep(0.001)


class Silent(Hooked):
    """Its signs of life do not arrive."""

    def set_registered_model_tag(self, *_: str) -> None:
        raise ConnectionError("the network is away")


@contextmanager
def waiting(client: Any) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Somebody who waits in a thread until the lock lets him write: (is inside, may leave)."""
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        while not inside.is_set():
            with suppress(TimeoutError), exclusive(client, LOCK) as lease:
                lease.require()
                inside.set()
                leave.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield inside, leave
    finally:
        leave.set()
        thread.join(60)


@pytest.mark.parametrize("after", range(1, 8))
def test_of_two_who_find_an_abandoned_lock_one_gets_in(after: int, clock: Clock) -> None:
    """The first takes it over between any two calls that the second makes once the lock is stale."""
    registry, holder, taken = Registry(), ExitStack(), threading.Event()
    registry.create_registered_model(LOCK, tags={"owner": "dead"})

    def first() -> None:
        clock.slept_s = 2 * STALE_S
        holder.enter_context(exclusive(registry, LOCK))
        clock.slept_s = 0
        taken.set()

    second = Hooked(registry, first)
    with waiting(second) as (inside, _):
        second.polled()
        clock.now_s += 2 * STALE_S
        second.at = second.calls + after
        while not taken.is_set() and not inside.is_set():
            time.sleep(0.001)
        second.at = -1
        if taken.is_set():
            assert not inside.wait(0.1), "both are inside"
            holder.close()
        assert inside.wait(60)
    assert registry.models == {}


def test_a_slow_holder_is_not_taken_for_dead(clock: Clock) -> None:
    registry = Registry()
    waiter = Hooked(registry)
    with ExitStack() as stack:
        with exclusive(registry, LOCK) as lease:
            inside, _ = stack.enter_context(waiting(waiter))
            for _ in range(8):
                before = registry.models[LOCK].get("beat")
                while registry.models[LOCK].get("beat") == before:
                    time.sleep(0.001)
                waiter.polled()
                clock.now_s += 0.2 * STALE_S
            assert not inside.is_set()
            time.sleep(0.1)
            lease.require()
        assert inside.wait(60)
    assert registry.models == {}


def test_a_holder_whose_signs_of_life_do_not_arrive_writes_no_more_and_leaves_the_lock_to_its_successor(
    clock: Clock,
) -> None:
    registry = Registry()
    first = exclusive(Silent(registry), LOCK)
    lease = first.__enter__()
    lease.require()
    second = Hooked(registry)
    with waiting(second) as (inside, leave):
        second.polled()
        clock.now_s += FRESH_S + 1
        with pytest.raises(TimeoutError, match="may have been given to another process"):
            lease.require()
        clock.now_s += STALE_S
        assert inside.wait(60)
        first.__exit__(None, None, None)
        third = Hooked(registry)
        with waiting(third) as (third_inside, _):
            third.polled()
            assert not third_inside.is_set()
            leave.set()
            assert third_inside.wait(60)
    assert registry.models == {}


@pytest.mark.parametrize("at", range(1, 12))
def test_whoever_dies_while_giving_the_lock_back_is_succeeded(at: int, clock: Clock) -> None:
    registry = Registry()

    def die() -> None:
        raise SystemExit

    dying = Silent(registry, die)
    held = exclusive(dying, LOCK)
    held.__enter__()
    dying.at = dying.calls + at
    with suppress(SystemExit):
        held.__exit__(None, None, None)
    clock.slept_s = 2 * STALE_S
    with waiting(registry) as (inside, leave):
        assert inside.wait(60)
        clock.slept_s = 0
        other = Hooked(registry)
        with waiting(other) as (other_inside, _):
            other.polled()
            assert not other_inside.is_set()
            leave.set()
            assert other_inside.wait(60)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


def test_in_mlflow_one_is_let_in_at_a_time_and_nothing_is_left(database: str) -> None:
    inside, most = [0], [0]

    def work() -> None:
        with exclusive(connect(database).MlflowClient(), LOCK) as lease:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            lease.require()
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert connect(database).MlflowClient().search_registered_models() == []


def test_in_mlflow_a_lock_left_by_the_dead_is_taken_over(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_lock, "STALE_S", 1.0)
    client = connect(database).MlflowClient()
    client.create_registered_model(LOCK, tags={"owner": "a process that was killed"})
    began = time.monotonic()
    with exclusive(client, LOCK):
        assert time.monotonic() - began > 1.0
    assert client.search_registered_models() == []


def test_who_slept_while_the_lock_changed_hands_does_not_take_the_next_ones_for_his_own(clock: Clock) -> None:
    """A machine that was suspended wakes: its clock stood still, and a lock of that name is there, somebody else's."""
    registry = Registry()
    with exclusive(registry, LOCK) as lease:
        lease.require()
        registry.delete_registered_model(LOCK)  # taken over and given back meanwhile
        registry.create_registered_model(LOCK, tags={"owner": "another"})
        with pytest.raises(TimeoutError, match="may have been given to another process"):
            lease.require()
    assert registry.models[LOCK]["owner"] == "another"
