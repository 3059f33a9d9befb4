"""A policy at the service of many robots: reads what they send, answers them together, within limits.

It knows no protocol: a codec hands it a function that reads a message, and gets an `Answer` or a `Refusal`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipelines.config.compute import Compute
from pipelines.publishing.control_rate import OtherRate, at_rate, rate_factor
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.inference import InferenceModel, named
from pipelines.publishing.object_detection import ObjectDetection
from pipelines.publishing.robot_declaration import require_declared
from pipelines.serving.action_limits import ActionLimits
from pipelines.serving.batching import Batcher, Job, Result, require_timely
from pipelines.serving.batching_config import BatchingConfig
from pipelines.serving.limits import Limits
from pipelines.serving.metrics import Metrics
from pipelines.serving.question import Answer, Question
from pipelines.serving.recording.config import RecordingConfig
from pipelines.serving.recording.recorder import Recorder
from pipelines.serving.refusal import Refusal
from pipelines.serving.request_values import is_missing
from pipelines.serving.sessions import Session, Sessions
from rt_models.control.observation import Frame, RobotState
from rt_models.spec import MAIN_CAMERA, DatasetContract, ObjectMarks, of_role

log = logging.getLogger("rtp.serve")

_ACTIVE_S = 1.0  # robots that have asked within it are waited for; 3 Hz is RT-1's rate


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """How a policy serves."""

    limits: Limits = field(default_factory=Limits)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    action_limits: ActionLimits = field(default_factory=ActionLimits)
    recording: RecordingConfig = field(default_factory=RecordingConfig)
    compute: Compute = field(default_factory=Compute)
    dataset: str | None = None
    """The data set whose units and scale an answer has where a robot names none."""
    detection: ObjectDetection = field(default_factory=ObjectDetection)
    plan_tokens: int = 0
    """Tokens of the plan that a model which was trained with plans says before it acts; 0 asks for none."""
    other_rate: OtherRate = "refuse"
    """What becomes of a robot that says it acts at another rate than was trained: an error, or scaled displacements."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A question as the model takes it."""

    model: InferenceModel
    question: Question
    dataset: DatasetContract
    frames: Frame
    """Of every camera."""
    state: RobotState
    rate_factor: float
    """By what displacements are multiplied for this robot's rate."""
    instruction: Any
    marks: ObjectMarks | None
    """Of the objects that the robot says are meant."""
    arrived: float
    """When the question was received, by the monotonic clock: its age counts from there."""

    def by_role(self) -> dict[str, np.ndarray]:
        """uint8 (H, W, 3) of each camera."""
        frames = self.frames if isinstance(self.frames, Mapping) else {MAIN_CAMERA: self.frames}
        return {role: np.asarray(frame) for role, frame in frames.items()}


class PolicyService:
    """Answers robots with the model of `trained`, until it is told to stop."""

    def __init__(self, trained: TrainedModel, config: ServiceConfig) -> None:
        self.config = config
        self._recorder = None if config.recording.record is None else Recorder(config.recording)
        self.model = self._made_ready(trained)
        self.require_fitting(self.model)
        self.sessions = Sessions(config.limits)
        self.batcher = Batcher(
            config.batching,
            max_waiting=config.limits.max_waiting,
            late_ms=config.limits.late_ms,
            active=lambda: self.sessions.active(_ACTIVE_S),
            observed=lambda robots, seconds: self.metrics.passed(robots, seconds),
        )
        self.metrics = Metrics(sessions=lambda: len(self.sessions), waiting=lambda: self.batcher.waiting)
        self.is_ready, self.is_stopping = False, False
        self._readers = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="reader")
        self._open = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._precision = ExitStack()

    @property
    def source(self) -> str:
        """Where the present model comes from."""
        return self.model.source

    def _made_ready(self, trained: TrainedModel) -> InferenceModel:
        config = self.config
        return InferenceModel(trained, config.compute, plan_tokens=config.plan_tokens, detection=config.detection)

    def require_fitting(self, model: InferenceModel) -> None:
        """Raise ValueError where a model lacks what this server was started with."""
        dimensions = {d.name: d for space, _ in model.sides(self.config.dataset) for d in space.dimensions}
        classes = [dimension.name for dimension in dimensions.values() if dimension.discrete]
        self.config.action_limits.require_known(list(dimensions), classes)
        if self.config.dataset is not None:
            model.contract.dataset(self.config.dataset)

    def warm_up(self, model: InferenceModel) -> None:
        """Lay the weights out and answer grey frames, so that no robot waits for it."""
        model.warm_up(self.config.batching.max_batch)

    # --- one question ---

    async def ask(self, session: Session, read: Callable[[], Question]) -> Answer:
        """The answer to what `read` reads, which is run in another thread. Raises Refusal."""
        return await self.answer(session, await self.prepare(read, lambda: session))

    async def prepare(self, read: Callable[[], Question], robot: Callable[[], Session | None]) -> Prepared:
        """Frame and instruction as the model takes them; no history moves. `robot` gives whose they are once `read` has
        run: it remembers the reset of a frame that is refused. Raises Refusal."""
        if self.is_stopping:
            raise Refusal("this server is stopping: connect again", status=503)
        model, arrived = self.model, time.monotonic()
        asked: list[Question] = []

        def timely() -> Prepared:
            asked.append(read())
            require_timely(time.monotonic() - arrived, self.config.limits.late_ms)  # before pictures are decoded
            return self._read(model, asked[0], arrived)

        with self._being_asked():
            try:
                return await self.in_reader(timely)
            except Refusal:
                if asked and (session := robot()) is not None:
                    session.note_reset(asked[0], arrived)
                raise

    async def answer(self, session: Session, prepared: Prepared) -> Answer:
        """The action for the frame, which joins the robot's history. Raises Refusal."""
        session.note_reset(prepared.question, prepared.arrived)
        session.require_rate(time.monotonic(), self.config.limits.max_rate_hz)
        with self._being_asked():
            if prepared.model is not self.model:  # another has taken its place meanwhile
                model, question = self.model, prepared.question
                arrived = prepared.arrived
                prepared = await self.in_reader(lambda: self._read(model, question, arrived))
            result = await self._acted(session, prepared)
            answer = self._named(result, prepared)
            self._record(session, prepared, answer, begins=result.begins)
            return answer

    def _record(self, session: Session, prepared: Prepared, answer: Answer, *, begins: bool) -> None:
        """Hand a step of a robot's episode to the recorder, which does not wait."""
        if self._recorder is None or prepared.question.stateless or not self.sessions.holds(session):
            return
        dataset, hz = prepared.dataset, prepared.question.control_hz
        self._recorder.step(
            session,
            prepared.question,
            answer,
            begins=begins,
            model=prepared.model,
            dataset=dataset if hz is None or prepared.rate_factor == 1.0 else replace(dataset, control_hz=hz),
            frames=prepared.by_role(),
            state=prepared.state,
            instruction=prepared.instruction,
            arrived=prepared.arrived,
        )
        self.metrics.recorded(lost=self._recorder.lost)

    def succeeded(self, session: Session, success: object) -> None:
        """Whether the robot's episode, which is over, was solved; what is no truth value says nothing."""
        if self._recorder is not None and isinstance(success, bool):
            self._recorder.succeeded(session, success)

    def disconnected(self, session: Session) -> None:
        """The robot has gone, and so has its place."""
        self.sessions.disconnected(session)
        if self._recorder is not None:
            self._recorder.ended(session)

    async def in_reader(self, work: Callable[[], Any]) -> Any:
        """Run `work` off the event loop; what it finds wrong with its input comes back as a Refusal."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, work)
        except Refusal:
            raise
        except (ValueError, RecursionError, OverflowError, MemoryError) as error:
            raise Refusal(" ".join(str(error).split()) or type(error).__name__) from error

    def _read(self, model: InferenceModel, question: Question, arrived: float) -> Prepared:
        contract = model.contract
        if question.contract and question.contract != contract.id:
            raise Refusal(
                f"contract {question.contract:.60} was asked for, this policy has {contract.id}: load the policy that "
                f"the robot was set up for, or set the robot up for this one",
                field="contract",
            )
        text, longest = question.instruction, self.config.limits.max_instruction_chars
        told_by = "instruction" if is_missing(question.embedding) else "embedding"
        if told_by == "embedding" and text:
            raise Refusal("an instruction came as text and as embedding: send one of the two", field="embedding")
        if text is not None and len(text) > longest:
            raise Refusal(f"the instruction has {len(text)} letters, at most {longest} are read", field="instruction")
        dataset = _blamed("dataset", lambda: contract.dataset(question.dataset or self.config.dataset))
        _blamed("state", lambda: model.require_state(question.state, dataset))
        _blamed("declaration", lambda: require_declared(question.declared, contract, dataset))
        pictures = question.pictures(model.cameras(dataset))
        frames = _blamed("image", lambda: model.frames(pictures, dataset))
        meant = question.objects
        marks = _blamed(next(iter(meant.said()), "object_box"), lambda: model.marks(meant, pictures, frames, dataset))
        return Prepared(
            model=model,
            question=question,
            dataset=dataset,
            frames=frames,
            state=None if dataset.state is None else question.state,
            rate_factor=_blamed(
                "control_hz", lambda: rate_factor(dataset, question.control_hz, self.config.other_rate)
            ),
            instruction=_blamed(told_by, lambda: model.instruction(text, question.embedding)),
            marks=marks,
            arrived=arrived,
        )

    async def _acted(self, session: Session, prepared: Prepared) -> Result:
        question = prepared.question
        if question.stateless:
            session = self.sessions.alone(session.name)
        else:
            session.take(prepared.arrived)
        job = Job(
            session=session,
            model=prepared.model,
            dataset=prepared.dataset,
            frames=prepared.frames,
            state=prepared.state,
            instruction=prepared.instruction,
            reset=question.reset,
            marks=prepared.marks,
            future=asyncio.get_running_loop().create_future(),
            arrived=prepared.arrived,
        )
        self.batcher.submit(job)
        return await job.future

    def _named(self, result: Result, prepared: Prepared) -> Answer:
        model = prepared.model
        space, side = prepared.dataset.acted(model.contract.action)
        said = named(result.action, model.contract, prepared.dataset)
        action, clipped = self.config.action_limits.applied(at_rate(said, prepared.rate_factor, space, side))
        self.metrics.clipped(clipped)
        return Answer(
            action=action,
            tokens_A=result.action.tokens,
            clipped=clipped,
            contract=model.contract.id,
            model=model.source,
            dataset=prepared.dataset.name,
            infer_ms=result.infer_ms,
            read=_checksums(prepared) if prepared.question.explain else {},
        )

    @contextmanager
    def _being_asked(self) -> Iterator[None]:
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    # --- life ---

    async def start(self) -> None:
        """Warm up, then answer."""
        # For as long as the service lives: another model may be warmed up in another thread, and neither thread may
        # take the precision back that the other works in.
        self._precision.enter_context(self.config.compute.applied(self.config.compute.resolved()))
        model = self.model
        await self.batcher.in_model_thread(lambda: self.warm_up(model))
        if self._recorder is not None:  # not before: a process that nobody ends would keep this one from ending
            self._recorder.start()
        self._tasks = [asyncio.create_task(work) for work in (self.batcher.run(), self._forget_idle())]
        self.is_ready = True

    @property
    def is_alive(self) -> bool:
        """Whether what answers robots is still at work."""
        return not any(task.done() for task in self._tasks)

    async def swap(self, trained: TrainedModel) -> None:
        """Let another model take the place of the present one, which answers until the other is ready.

        Raises ValueError where it lacks what this server was started with, or asks robots for something else.
        """
        model = self._made_ready(trained)
        self.require_fitting(model)
        if model.reads_object_masks != self.model.reads_object_masks:
            one, other = ("needs", "does not") if model.reads_object_masks else ("takes no", "does")
            raise ValueError(
                f"the new model {one} object_box with an episode's first frame, and the served one {other}"
            )
        await asyncio.to_thread(self.warm_up, model)
        old, self.model = self.model, model
        self.metrics.swapped()
        while self.batcher.needs(old):  # what it has begun rests on the histories that it has seen
            await asyncio.sleep(0.005)
        await self.batcher.in_model_thread(lambda: self.sessions.forget_histories(unless=model))

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, and answer what is there."""
        self.is_stopping = True
        ends = time.monotonic() + timeout_s
        while (self._open or not self.batcher.is_idle) and time.monotonic() < ends:
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self.is_stopping = True
        for task in self._tasks:
            task.cancel()
        self.batcher.close()
        self._precision.close()
        self._readers.shutdown(wait=False, cancel_futures=True)
        if self._recorder is not None:
            self._recorder.end_those_without(lambda session: False)
            await asyncio.to_thread(self._recorder.close)

    async def _forget_idle(self) -> None:
        while True:
            await asyncio.sleep(min(self.config.limits.idle_s, 30.0))
            for robot in self.sessions.forget_idle():
                log.info("forgotten: no request for a while", extra={"robot": robot})
            if self._recorder is not None:
                self._recorder.end_those_without(self.sessions.holds)


def _blamed(name: str, read: Callable[[], Any]) -> Any:
    """What `read` gives; what it refuses is refused with the field's name."""
    try:
        return read()
    except Refusal:
        raise
    except ValueError as error:
        raise Refusal(" ".join(str(error).split()), field=name) from error


def _checksums(prepared: Prepared) -> dict[str, int]:
    instruction, state = prepared.instruction, prepared.dataset.state
    content = instruction.encode() if isinstance(instruction, str) else np.asarray(instruction, np.float32).tobytes()
    sums = {of_role("image_crc32", role): zlib.crc32(frame.tobytes()) for role, frame in prepared.by_role().items()}
    if state is not None:
        sums["state_crc32"] = zlib.crc32(np.array(state.physical(prepared.state)).tobytes())
    return sums | {"instruction_crc32": zlib.crc32(content)}
