"""Dynamic batching: frames of several robots are answered by one pass of the model, off the event loop.

A pass begins as soon as the model is free and every robot that has asked lately is there, or the oldest frame has
waited `max_wait_ms`. Where more wait than fit, the latest frames go first; one that has waited too long gets an error,
never an action for an old frame. A newer frame of a robot takes the place of its older one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from pipelines.families.base import Policy
from pipelines.publishing.inference import InferenceModel
from pipelines.serving.batching_config import BatchingConfig
from pipelines.serving.refusal import Refusal
from pipelines.serving.sessions import Session
from rt_models.control.action import Action
from rt_models.control.observation import Frame, RobotState
from rt_models.spec import DatasetContract, ObjectMarks

log = logging.getLogger("rtp.serve")


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One robot's frame, read, on its way to the model."""

    session: Session
    model: InferenceModel
    dataset: DatasetContract
    frames: Frame
    state: RobotState
    """None where the model reads none."""
    instruction: Any
    reset: bool
    marks: ObjectMarks | None
    """Of the objects that the robot says are meant; None where it says nothing."""
    future: asyncio.Future[Result]
    arrived: float
    """When the robot's message was received, by the monotonic clock."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a pass gave one robot."""

    action: Action
    infer_ms: float
    begins: bool
    """Whether it is an episode's first, because the robot said so with this frame or one that was refused."""


class Batcher:
    """Waiting frames and the one thread that runs the model.

    `active` counts the robots that have asked lately; `observed` is told of each pass: its size and seconds.
    """

    def __init__(
        self,
        config: BatchingConfig,
        *,
        max_waiting: int,
        late_ms: float,
        active: Callable[[], int],
        observed: Callable[[int, float], None],
    ) -> None:
        self._config, self._max_waiting, self._late_ms = config, max_waiting, late_ms
        self._active, self._observed = active, observed
        self._waiting: dict[Session, Job] = {}
        self._arrived = asyncio.Event()
        self._in_flight: Sequence[Job] = ()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._in_flight

    def needs(self, model: InferenceModel) -> bool:
        """Whether a frame that this model is to answer is still here."""
        return any(job.model is model for job in (*self._waiting.values(), *self._in_flight))

    def submit(self, job: Job) -> None:
        """Let the job wait. Raises Refusal (503) where too many wait already."""
        older = self._waiting.pop(job.session, None)
        if older is not None:
            job.session.begins |= older.reset
            _refuse(older, f"a newer frame of {job.session.called} has taken the place of this one", status=409)
        job.session.begins |= job.reset
        if len(self._waiting) >= self._max_waiting:
            raise Refusal(f"{len(self._waiting)} robots are waiting already: ask again later", status=503)
        self._waiting[job.session] = replace(job, reset=job.session.begun(job.arrived))
        self._arrived.set()

    def in_model_thread(self, work: Callable[[], None]) -> asyncio.Future[None]:
        """Run `work` where the model runs, between two passes."""
        return asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            await self._arrived.wait()
            await self._gather()
            jobs = self._taken()
            if jobs:
                self._in_flight = jobs
                try:
                    await self._answer(jobs)
                finally:
                    self._in_flight = ()
            if not self._waiting:
                self._arrived.clear()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _gather(self) -> None:
        """Wait for the frames of other robots, but no longer than the oldest here may."""
        ends = min((job.arrived for job in self._waiting.values()), default=0.0) + self._config.max_wait_ms / 1000
        while len(self._waiting) < min(self._config.max_batch, self._active()):
            left = ends - time.monotonic()
            if left <= 0:
                return
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    def _taken(self) -> list[Job]:
        """The latest jobs, at most a batch. Those that have waited too long are refused, abandoned ones dropped."""
        now = time.monotonic()
        for session, job in list(self._waiting.items()):
            if job.future.done():
                del self._waiting[session]
                session.begins |= job.reset
                continue
            try:
                require_timely(now - job.arrived, self._late_ms)
            except Refusal as refusal:
                del self._waiting[session]
                session.begins |= job.reset
                job.future.set_exception(refusal)
        latest = sorted(self._waiting.values(), key=lambda job: job.arrived, reverse=True)[: self._config.max_batch]
        for job in latest:
            del self._waiting[job.session]
        return latest

    async def _answer(self, jobs: Sequence[Job]) -> None:
        loop = asyncio.get_running_loop()
        for _, group in groupby(sorted(jobs, key=lambda job: id(job.model)), key=lambda job: id(job.model)):
            of_model = list(group)
            started = time.perf_counter()
            outcomes = await loop.run_in_executor(self._thread, _outcomes, of_model)
            seconds = time.perf_counter() - started
            self._observed(len(of_model), seconds)
            for job, outcome in zip(of_model, outcomes, strict=True):
                if isinstance(outcome, Action) and not job.future.done():
                    job.future.set_result(Result(action=outcome, infer_ms=seconds * 1000, begins=job.reset))
                    continue
                self._pass_reset_on(job)
                if isinstance(outcome, Exception) and not job.future.done():
                    job.future.set_exception(outcome)

    def _pass_reset_on(self, job: Job) -> None:
        """Let the robot's next frame begin the episode that this one was to begin."""
        newer = self._waiting.get(job.session)
        if newer is None:
            job.session.begins |= job.reset
        else:
            self._waiting[job.session] = replace(newer, reset=newer.reset or job.reset)


def require_timely(age_s: float, late_ms: float) -> None:
    """Raises Refusal (503) for a frame of this age: an action for an old frame is worse than none."""
    if age_s * 1000 > late_ms:
        raise Refusal(f"this frame has waited {age_s * 1000:.0f} ms, longer than {late_ms:g} ms", status=503)


def _refuse(job: Job, reason: str, *, status: int) -> None:
    if not job.future.done():
        job.future.set_exception(Refusal(reason, status=status))


def _outcomes(jobs: Sequence[Job]) -> list[Action | Exception]:
    """The action of each job, or what went wrong with it. What one robot sends does not cost the others theirs."""
    try:
        return list(_acted(jobs))
    except Exception as error:
        if len(jobs) > 1:
            return [outcome for job in jobs for outcome in _outcomes([job])]
        if isinstance(error, ValueError):
            return [Refusal(str(error), field=getattr(error, "field", ""))]
        log.exception("the model failed", extra={"robot": jobs[0].session.name})
        return [Refusal("the model failed on this frame: the server's log says why", status=500)]


def _acted(jobs: Sequence[Job]) -> Iterable[Action]:
    policies: list[Policy] = []
    for job in jobs:
        policy = job.session.policy(job.model, job.dataset)
        if job.reset:
            policy.reset()
        if job.marks is not None:
            job.model.mark(policy, job.marks)
        policies.append(policy)
    states = [job.state for job in jobs]
    felt = (states,) if any(state is not None for state in states) else ()
    return jobs[0].model.act(policies, [job.frames for job in jobs], [job.instruction for job in jobs], *felt)
