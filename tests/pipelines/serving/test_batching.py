"""Robots answered together: alike as alone, without harm from each other, never with an action for an old frame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.publishing.inference import TOGETHER, InferenceModel
from pipelines.serving import batching_config
from pipelines.serving.action_limits import ActionLimits
from pipelines.serving.batching_config import BatchingConfig
from pipelines.serving.limits import Limits
from pipelines.serving.question import Question
from pipelines.serving.refusal import Refusal
from pipelines.serving.service import PolicyService, ServiceConfig
from pipelines.serving.sessions import Session, Sessions
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image
from tests.support.policy_clients import OpenpiRobot
from tests.support.policy_server import running, untrained
from tests.support.policy_service import asks, held, serve, waits


def test_robots_that_ask_at_once_are_answered_in_few_passes_and_as_if_alone(
    opened: EpisodeStore, frames: list[bytes], text: str
) -> None:
    sizes: list[int] = []

    async def together(service: PolicyService) -> list[list[int]]:
        act = service.model.act
        service.model.act = lambda p, f, i: (sizes.append(len(p)), act(p, f, i))[1]  # type: ignore[method-assign]
        robots = [service.sessions.named(f"robot-{number}") for number in range(8)]
        tokens: list[list[int]] = []
        for step in range(4):
            asked = [service.ask(robot, asks(frames[(step + n) % 6], text)) for n, robot in enumerate(robots)]
            tokens += [answer.tokens_A.tolist() for answer in await asyncio.gather(*asked)]
        return tokens

    answered = serve(opened, together, batching=BatchingConfig(max_wait_ms=500))
    model = InferenceModel(untrained(opened))
    alone: list[list[int]] = []
    policies = [model.episode(model.contract.datasets[0]) for _ in range(8)]
    for step in range(4):
        for n, policy in enumerate(policies):
            (action,) = model.act([policy], [model.frame(frames[(step + n) % 6])], [model.instruction(text)])
            alone.append(action.tokens.tolist())
    assert answered == alone
    assert sum(sizes) == 32 and sizes.count(8) >= 3, sizes


def test_a_robot_that_fails_costs_the_others_nothing(opened: EpisodeStore, frames: list[bytes], text: str) -> None:
    async def together(service: PolicyService) -> list[Any]:
        act = service.model.act

        def failing(policies: Any, seen: Any, instructions: Any) -> Any:
            if any(frame.max() == 0 for frame in seen):
                raise ValueError("this frame is too dark") if len(seen) == 1 else RuntimeError("a batch failed")
            return act(policies, seen, instructions)

        service.model.act = failing  # type: ignore[method-assign]
        images = [frames[0], np.zeros((96, 96, 3), np.uint8), frames[1]]
        asked = [service.ask(service.sessions.named(str(n)), asks(image, text)) for n, image in enumerate(images)]
        return await asyncio.gather(*asked, return_exceptions=True)

    first, dark, last = serve(opened, together, batching=BatchingConfig(max_wait_ms=500))
    assert first.action.frames_seen == last.action.frames_seen == 1
    assert isinstance(dark, Refusal) and str(dark) == "this frame is too dark"


def test_a_newer_frame_takes_the_place_of_an_older_one(opened: EpisodeStore, frames: list[bytes], text: str) -> None:
    async def twice(service: PolicyService) -> list[Any]:
        robot = service.sessions.named("a")
        with held(service):
            # The first pass takes what waits: it stands before the busy model's thread, so the next two queue up.
            first = asyncio.create_task(service.ask(robot, asks(frames[0], text)))
            await asyncio.sleep(0.2)
            second = asyncio.create_task(service.ask(robot, asks(frames[1], text)))
            await waits(service, 1)
            third = asyncio.create_task(service.ask(robot, asks(frames[2], text)))
            await asyncio.sleep(0.2)
        return await asyncio.gather(first, second, third, return_exceptions=True)

    first, second, third = serve(opened, twice, limits=Limits(late_ms=20_000))
    assert (first.action.frames_seen, third.action.frames_seen) == (1, 2)
    assert isinstance(second, Refusal) and second.status == 409 and "a newer frame of robot a" in str(second)


def test_a_frame_that_is_overtaken_while_it_is_read_is_refused(
    opened: EpisodeStore, frames: list[bytes], text: str
) -> None:
    """A robot's history holds its frames in the order in which they came."""

    def slowly() -> Question:
        time.sleep(0.5)
        return Question(frame=frames[0], instruction=text)

    async def overtaken(service: PolicyService) -> list[Any]:
        robot = service.sessions.named("a")
        older = asyncio.create_task(service.ask(robot, slowly))
        await asyncio.sleep(0.1)
        newer = await service.ask(robot, asks(frames[1], text))
        told = await asyncio.gather(older, return_exceptions=True)
        alone = await service.ask(robot, asks(frames[1], text, stateless=True))
        return [newer, *told, alone, await service.ask(robot, asks(frames[2], text))]

    newer, refused, alone, next_one = serve(opened, overtaken, limits=Limits(late_ms=20_000))
    assert isinstance(refused, Refusal) and refused.status == 409 and "before this one was read" in str(refused)
    seen = [answer.action.frames_seen for answer in (newer, alone, next_one)]
    assert seen == [1, 1, 2]


def test_a_frame_that_has_waited_too_long_gets_an_error(opened: EpisodeStore, frames: list[bytes], text: str) -> None:
    async def late(service: PolicyService) -> list[Any]:
        with held(service):
            busy = asyncio.create_task(service.ask(service.sessions.named("first"), asks(frames[0], text)))
            await asyncio.sleep(0.1)
            waiting = asyncio.create_task(service.ask(service.sessions.named("second"), asks(frames[0], text)))
            await asyncio.sleep(0.5)
        return await asyncio.gather(busy, waiting, return_exceptions=True)

    _, refused = serve(opened, late, limits=Limits(late_ms=200))
    assert isinstance(refused, Refusal) and refused.status == 503 and "longer than 200 ms" in str(refused)


def test_no_more_wait_than_may(opened: EpisodeStore, frames: list[bytes], text: str) -> None:
    async def crowd(service: PolicyService) -> list[Any]:
        with held(service):
            tasks = []
            for number in range(4):
                robot = service.sessions.named(str(number))
                tasks.append(asyncio.create_task(service.ask(robot, asks(frames[0], text))))
                await asyncio.sleep(0.1)
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = serve(opened, crowd, limits=Limits(max_waiting=2, late_ms=20_000))
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    assert [refusal.status for refusal in refused] == [503] and "2 robots are waiting already" in str(refused[0])


def test_the_latest_frames_go_first(opened: EpisodeStore, frames: list[bytes], text: str) -> None:
    async def order(service: PolicyService) -> list[str]:
        done: list[str] = []

        async def ask(name: str) -> None:
            await service.ask(service.sessions.named(name), asks(frames[0], text))
            done.append(name)

        with held(service):
            tasks = []
            for name in "abcd":
                tasks.append(asyncio.create_task(ask(name)))
                await asyncio.sleep(0.1)
        await asyncio.gather(*tasks)
        return done

    order_of = serve(opened, order, batching=BatchingConfig(max_batch=1), limits=Limits(late_ms=20_000))
    assert order_of == ["a", "d", "c", "b"]  # the first was taken before the others came


def test_what_was_asked_is_answered_before_the_service_stops(
    opened: EpisodeStore, frames: list[bytes], text: str
) -> None:
    async def draining(service: PolicyService) -> list[Any]:
        asked = asyncio.create_task(service.ask(service.sessions.named("a"), asks(frames[0], text)))
        await asyncio.sleep(0)
        await service.drain(20)
        late = service.ask(service.sessions.named("b"), asks(frames[0], text))
        return await asyncio.gather(asked, late, return_exceptions=True)

    answer, refused = serve(opened, draining)
    assert answer.action.frames_seen == 1
    assert isinstance(refused, Refusal) and refused.status == 503 and "stopping" in str(refused)


def test_many_robots_on_the_wire_keep_their_own_histories(opened: EpisodeStore, frames: list[bytes]) -> None:
    """Each robot sends its own frames; its tokens are those of a policy that saw these frames alone."""
    model, texts = InferenceModel(untrained(opened)), opened.instruction_texts
    pixels = [decode_image(frame) for frame in frames]

    def robot(number: int, url: str) -> list[list[int]]:
        with OpenpiRobot(url) as client:
            seen = [{"image": pixels[(number + step) % 6], "prompt": texts[number % 6]} for step in range(6)]
            return [client.infer(observation)["tokens"][0].tolist() for observation in seen]

    with running(untrained(opened)) as server, ThreadPoolExecutor(12) as threads:
        answered = list(threads.map(lambda number: robot(number, server.websocket), range(12)))
    for number, tokens in enumerate(answered):
        policy, told = model.episode(model.contract.datasets[0]), model.instruction(texts[number % 6])
        expected = [model.act([policy], [pixels[(number + step) % 6]], [told])[0].tokens.tolist() for step in range(6)]
        assert tokens == expected, number


def test_actions_are_brought_within_limits_and_it_is_said(opened: EpisodeStore, frames: list[bytes], text: str) -> None:
    async def once(service: PolicyService) -> Any:
        return await service.ask(service.sessions.named("a"), asks(frames[0], text))

    free = serve(opened, once).action.values
    bounds = {"world_vector_y": (0.1, 0.2), "world_vector_z": (-1.0, 1.0)}
    answer = serve(opened, once, action_limits=ActionLimits(bounds=bounds))
    assert free["world_vector_y"] < 0.1 and answer.action.values["world_vector_y"] == 0.1
    assert answer.clipped == ("world_vector_y",)
    assert {n: v for n, v in answer.action.values.items() if n != "world_vector_y"} == {
        n: v for n, v in free.items() if n != "world_vector_y"
    }
    for name, words in (("world_vectr_y", "did you mean 'world_vector_y'"), ("terminate_episode", "number of a class")):
        with pytest.raises(ValueError, match=words):
            PolicyService(untrained(opened), ServiceConfig(action_limits=ActionLimits(bounds={name: (0, 1)})))


@pytest.mark.parametrize("line", ["world_vector_x: 1", "world_vector_x: [1, 0]", "world_vector_x: [a, b]", "- 1"])
def test_limits_that_are_none_are_named(tmp_path: Any, line: str) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(line)
    with pytest.raises(ValueError, match=r"limits\.yaml: "):
        ActionLimits.read(str(file))
    file.write_text("world_vector_x: [-0.05, 0.05]")
    assert ActionLimits.read(str(file)).bounds == {"world_vector_x": (-0.05, 0.05)}


# --- sessions ---


def test_places_are_forgotten_when_idle_and_refused_when_taken() -> None:
    now = [0.0]
    sessions = Sessions(Limits(max_robots=2, idle_s=10), clock=lambda: now[0])
    first, connected = sessions.named("a"), sessions.connected("c")
    assert sessions.named("a") is first
    with pytest.raises(Refusal, match="already serves 2 robots"):
        sessions.named("b")
    now[0] = 11.0
    assert sessions.named("b") is not first and [robot["name"] for robot in sessions.listed()] == ["b", "c"]
    sessions.disconnected(connected)
    assert sessions.named("a") is not first and len(sessions) == 2


def test_a_robot_that_asks_too_often_is_refused_until_it_asks_less() -> None:
    robot = Session("a", 0.0)
    for _ in range(5):
        robot.require_rate(1.0, 5)
    with pytest.raises(Refusal, match="more often than 5 times a second") as refused:
        robot.require_rate(1.0, 5)
    assert refused.value.status == 429
    for step in range(20):
        robot.require_rate(2.0 + step * 0.2, 5)


def test_a_batch_is_no_larger_than_a_pass_of_the_model() -> None:
    assert batching_config.MOST == TOGETHER
    for wrong in ({"max_batch": 0}, {"max_batch": 33}, {"max_wait_ms": -1}):
        with pytest.raises(ValueError, match="--max-"):
            BatchingConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="--max-robots 0: give a number above 0"):
        Limits(max_robots=0)


def test_a_frame_that_has_waited_to_be_read_is_late_too(opened: EpisodeStore, frames: list[bytes], text: str) -> None:
    def slowly(role: str, others: Sequence[str]) -> object:
        time.sleep(0.2)
        return frames[0]

    async def crowded(service: PolicyService) -> list[Any]:
        robots = [service.sessions.named(f"robot-{number}") for number in range(24)]
        asked = [service.ask(robot, lambda: Question(camera=slowly, instruction=text)) for robot in robots]
        started = time.monotonic()
        told = await asyncio.gather(*asked, return_exceptions=True)
        assert time.monotonic() - started < 3  # the pictures of those that are late are not decoded first
        return told

    told = serve(opened, crowded, limits=Limits(late_ms=500))
    refused = [str(answer) for answer in told if isinstance(answer, Refusal)]
    assert refused and all(reason.startswith("this frame has waited ") for reason in refused)
    assert len(refused) < len(told)


def test_a_frame_that_waits_while_the_model_changes_keeps_its_history(
    opened: EpisodeStore, frames: list[bytes], text: str
) -> None:
    async def swapped(service: PolicyService) -> tuple[Any, Any]:
        robot, other = service.sessions.named("robot"), service.sessions.named("other")
        for frame in frames[:2]:
            await service.ask(robot, asks(frame, text))
        with held(service):
            asked = [asyncio.create_task(service.ask(other, asks(frames[0], text)))]
            await asyncio.sleep(0.1)  # its pass has begun
            asked.append(asyncio.create_task(service.ask(robot, asks(frames[2], text))))
            await waits(service, 1)
            swap = asyncio.create_task(service.swap(replace(untrained(opened, seed=1), source="second")))
            while service.source != "second":
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
        _, before = await asyncio.gather(*asked)
        await swap
        return before, await service.ask(robot, asks(frames[3], text))

    before, after = serve(opened, swapped, limits=Limits(late_ms=30_000))
    assert (before.model, before.action.frames_seen) == ("untrained", 3)
    assert (after.model, after.action.frames_seen) == ("second", 1)
