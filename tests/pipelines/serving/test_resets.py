"""An episode that a robot says it begins does begin, once, whatever becomes of the frame that said so."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from typing import Any

import pytest

from pipelines.serving.limits import Limits
from pipelines.serving.question import Question
from pipelines.serving.refusal import Refusal
from pipelines.serving.service import PolicyService, ServiceConfig
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image
from tests.support.policy_clients import OpenpiRobot, post
from tests.support.policy_server import RunningServer, running, untrained
from tests.support.policy_service import asks, held, serve, waits

UNHURRIED = Limits(late_ms=20_000)


def recorded_beginnings(service: PolicyService) -> list[bool]:
    """Of each step of any robot, as it is answered: whether an episode is recorded to begin with it."""
    beginnings: list[bool] = []
    service._record = lambda *_, begins: beginnings.append(begins)  # type: ignore[method-assign]
    return beginnings


def test_an_episode_begins_though_its_first_frame_was_refused(
    opened: EpisodeStore, frames: list[bytes], text: str
) -> None:
    """Its place was taken by a newer frame, or it was late: the next one's history is not the last episode's."""

    async def new_episodes(service: PolicyService) -> list[Any]:
        robot, other = service.sessions.named("a"), service.sessions.named("b")
        told = []
        service._record = lambda session, *_, begins: recorded[session.name].append(begins)  # type: ignore[method-assign]
        for newer in (asks(frames[2], text), None):
            await service.ask(robot, asks(frames[0], text))
            with held(service):
                asked = [asyncio.create_task(service.ask(other, asks(frames[0], text)))]
                await asyncio.sleep(0.1)  # its pass has begun
                asked.append(asyncio.create_task(service.ask(robot, asks(frames[1], text, reset=True))))
                await waits(service, 1)
                if newer is not None:
                    asked.append(asyncio.create_task(service.ask(robot, newer)))
                await asyncio.sleep(0.2 if newer else 2.2)
            told += (await asyncio.gather(*asked, return_exceptions=True))[1:]
            told.append(await service.ask(robot, asks(frames[3], text)))
        return told

    recorded: dict[str, list[bool]] = {"a": [], "b": []}
    replaced, newer, after, late, after_late = serve(opened, new_episodes, limits=Limits(late_ms=2000))
    assert [refusal.status for refusal in (replaced, late)] == [409, 503]
    assert [answer.action.frames_seen for answer in (newer, after, after_late)] == [1, 2, 1]
    assert recorded["a"] == [False, True, False, False, True]


def busy_readers(server: RunningServer) -> None:
    """Every thread that reads frames sleeps for longer than a frame may wait."""
    readers = server.service._readers
    for _ in range(readers._max_workers):
        readers.submit(time.sleep, 1.2)


def test_the_reset_of_a_frame_that_is_late_before_it_is_read_is_kept(
    opened: EpisodeStore, frames: list[bytes], text: str
) -> None:
    said = {"image": base64.b64encode(frames[0]).decode(), "instruction": text}
    seen = {"image": decode_image(frames[0]), "prompt": text}
    with running(untrained(opened), ServiceConfig(limits=Limits(late_ms=1000))) as server:
        for name in ("a", "b"):
            post(f"{server.address}/act", said | {"robot": name})
        busy_readers(server)
        status, told = post(f"{server.address}/act", said | {"robot": "a", "reset": True})
        assert status == 503 and "longer than 1000 ms" in told["error"]
        after = [post(f"{server.address}/act", said | {"robot": name})[1]["frames_seen"] for name in ("a", "b")]
        assert after == [1, 2]
        with OpenpiRobot(server.websocket) as robot:
            robot.infer(seen)
            busy_readers(server)
            with pytest.raises(RuntimeError, match="longer than 1000 ms"):
                robot.infer(seen | {"reset": True})
            assert robot.infer(seen)["frames_seen"] == 1


def test_the_resets_of_a_table_that_is_refused_for_one_row_are_kept(
    opened: EpisodeStore, frames: list[bytes], text: str
) -> None:
    rows = [
        {"image": base64.b64encode(frames[0]).decode(), "instruction": text, "robot": robot} for robot in ("a", "b")
    ]
    with running(untrained(opened)) as server:

        def told(*changes: dict[str, Any]) -> list[int]:
            table = [row | change for row, change in zip(rows, changes, strict=True)]
            _, answer = post(f"{server.address}/invocations", {"dataframe_records": table})
            return [row["frames_seen"] for row in answer.get("predictions", [])]

        assert told({}, {}) == [1, 1]
        assert told({"reset": True}, {"image": "AAAA"}) == []
        assert told({}, {}) == [1, 2]


@pytest.mark.parametrize(("newer_reset", "then_seen"), [(True, 2), (False, 1)])
def test_a_reset_that_is_overtaken_holds_unless_a_newer_one_has_begun_the_episode(
    opened: EpisodeStore, frames: list[bytes], text: str, newer_reset: bool, then_seen: int
) -> None:
    """A client that has waited too long asks again, and the second of its requests is read first."""

    def slowly(role: str, others: Sequence[str]) -> object:
        time.sleep(0.5)
        return frames[1]

    async def overtaken(service: PolicyService) -> list[Any]:
        robot = service.sessions.named("a")
        await service.ask(robot, asks(frames[0], text))
        older = service.ask(robot, lambda: Question(camera=slowly, instruction=text, reset=True))
        asked = asyncio.create_task(older)
        await asyncio.sleep(0.1)
        newer = await service.ask(robot, asks(frames[1], text, reset=newer_reset))
        (refusal,) = await asyncio.gather(asked, return_exceptions=True)
        return [newer, refusal, await service.ask(robot, asks(frames[2], text))]

    newer, refusal, then = serve(opened, overtaken, limits=UNHURRIED)
    assert isinstance(refusal, Refusal) and refusal.status == 409
    assert newer.action.frames_seen == (1 if newer_reset else 2)
    assert then.action.frames_seen == then_seen


@pytest.mark.parametrize("fate", ["fails", "fails while the next waits", "is given up"])
def test_an_episode_whose_first_frame_has_no_answer_is_recorded_from_the_next(
    opened: EpisodeStore, frames: list[bytes], text: str, fate: str
) -> None:
    async def first_without_answer(service: PolicyService) -> list[bool]:
        beginnings = recorded_beginnings(service)
        robot, act = service.sessions.named("a"), service.model.act

        def failing(*_: object) -> Any:
            service.model.act = act  # type: ignore[method-assign]
            raise RuntimeError("out of memory")

        await service.ask(robot, asks(frames[0], text))
        if fate != "is given up":
            service.model.act = failing  # type: ignore[method-assign]
        with held(service):
            first = asyncio.create_task(service.ask(robot, asks(frames[1], text, reset=True)))
            await asyncio.sleep(0.2)  # its pass has begun
            waiting = []
            if fate == "fails while the next waits":
                waiting.append(asyncio.create_task(service.ask(robot, asks(frames[2], text))))
                await waits(service, 1)
            elif fate == "is given up":
                first.cancel()
        await asyncio.gather(first, *waiting, return_exceptions=True)
        while len(beginnings) < 3:
            await service.ask(robot, asks(frames[3], text))
        return beginnings

    assert serve(opened, first_without_answer, limits=UNHURRIED) == [False, True, False]
