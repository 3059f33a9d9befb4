"""The server's end of recording: it hands steps on, and never waits.

Where the writing process is slower than the robots, the queue between them fills, and steps are lost; the writer leaves
out the episodes that they belong to.
"""

from __future__ import annotations

import base64
import itertools
import logging
import math
import multiprocessing
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import numpy as np

from pipelines.publishing.inference import InferenceModel
from pipelines.serving.question import Answer, Question
from pipelines.serving.recording.config import RecordingConfig
from pipelines.serving.recording.messages import EpisodeEnd, LayoutTold, Message, RecordedStep, RobotLayout
from pipelines.serving.sessions import Session
from preprocessing.store.image_header import JPEG
from preprocessing.store.images import image_size
from rt_models.control.observation import RobotState
from rt_models.spec import DatasetContract

log = logging.getLogger("rtp.serve")

_QUEUED = 256  # steps between server and writer: 63 MB of frames of 256x320
_JPEG_IN_BASE64 = "/9j/"
_END_S = 60.0  # for the writer to publish what is open when the server stops


@dataclass
class _OpenEpisode:
    number: int
    instruction: str
    layout: int
    model: str
    steps: int = 0
    success: bool | None = None


class Recorder:
    """Episodes of the sessions of one server. An episode ends with its session, another instruction, data set or model,
    and where the robot begins another."""

    def __init__(self, config: RecordingConfig) -> None:
        config.folder()
        self._config = config
        self._queue: queue.Queue[Message | None] = queue.Queue(_QUEUED)
        self._open: dict[Session, _OpenEpisode] = {}
        self._ends: deque[EpisodeEnd] = deque()  # that did not fit into the queue yet
        self._layouts: dict[tuple[str, str, float], int] = {}
        self._numbers = itertools.count()
        self.lost = 0
        """Steps that did not fit into the queue."""

    def start(self) -> None:
        """Start the writer. It comes up beside the server, which does not wait for it."""
        from pipelines.serving.recording.episode_writer import write_episodes  # TFDS: where episodes are written

        context = multiprocessing.get_context("spawn")
        heard, self._told = context.Pipe(duplex=False)
        self._writer = context.Process(target=write_episodes, args=(heard, self._config), name="episode writer")
        self._writer.start()
        heard.close()  # the writer's own end alone is left: it sees when the server is gone, and is seen to be gone
        self._thread = threading.Thread(target=_pump, args=(self._queue, self._told), daemon=True)
        self._thread.start()

    def step(
        self,
        session: Session,
        question: Question,
        answer: Answer,
        *,
        begins: bool,
        model: InferenceModel,
        dataset: DatasetContract,
        frames: Mapping[str, np.ndarray],
        state: RobotState,
        instruction: str | np.ndarray,
        arrived: float,
    ) -> None:
        """One answer of a robot that has a history, which saw `frames`, by role, and felt `state`, if the policy reads
        one. `begins`: it has said that an episode begins. `dataset` has the rate at which the robot acts, `arrived` is
        when it asked. Of an instruction that came as a vector alone nothing is kept: a store needs its words."""
        if not question.instruction:
            return
        self._put_ends()
        layout = self._layout(model, dataset, instruction, frames)
        episode = self._open.get(session)
        about = (question.instruction, layout, answer.model)
        if episode is None or begins or about != (episode.instruction, episode.layout, episode.model):
            self.ended(session)
            episode = self._open[session] = _OpenEpisode(next(self._numbers), *about)
        values, roles = answer.action.values.values(), tuple(frames)
        self._put(
            RecordedStep(
                episode=episode.number,
                robot=session.name,
                layout=layout,
                number=episode.steps,
                frames={role: _received(question, role, roles, frame) or frame for role, frame in frames.items()},
                instruction=question.instruction,
                embedding=None if isinstance(instruction, str) else instruction,
                values_A=tuple(math.nan if value is None else value for value in values),
                tokens_T=answer.tokens_A,
                contract=answer.contract,
                model=answer.model,
                state=() if dataset.state is None else dataset.state.physical(state),
                success=question.success,
                told_hz=question.control_hz or 0.0,
                arrived=arrived,
            )
        )
        episode.steps += 1

    def succeeded(self, session: Session, success: bool) -> None:
        """Whether the robot's episode, which is over, was solved: of one that says so after its last step."""
        if session in self._open:
            self._open[session].success = success
            self.ended(session)

    def ended(self, session: Session) -> None:
        """The robot's episode, if it has one, is over."""
        episode = self._open.pop(session, None)
        if episode is not None:
            self._ends.append(EpisodeEnd(episode=episode.number, steps=episode.steps, success=episode.success))
            self._put_ends()

    def end_those_without(self, is_here: Callable[[Session], bool]) -> None:
        """End the episodes of robots that were forgotten."""
        for session in [session for session in self._open if not is_here(session)]:
            self.ended(session)

    def close(self) -> None:
        """Wait until everything is written that was told."""
        with suppress(queue.Full):
            for message in (*self._ends, None):
                self._queue.put(message, timeout=_END_S)
            self._thread.join(_END_S)
        self._writer.join(_END_S)
        if self._writer.is_alive():
            log.warning("recording has not ended in time: episodes that went on are lost")
            self._writer.kill()

    def _layout(
        self,
        model: InferenceModel,
        dataset: DatasetContract,
        instruction: str | np.ndarray,
        frames: Mapping[str, np.ndarray],
    ) -> int:
        key = model.contract.id, dataset.name, dataset.control_hz
        if key not in self._layouts:
            (space, side), felt = dataset.acted(model.contract.action), dataset.state
            layout = RobotLayout(
                space=space,
                side=replace(side, control_hz=dataset.control_hz),
                cameras=tuple((role, frame.shape[0], frame.shape[1]) for role, frame in frames.items()),
                encoder="" if isinstance(instruction, str) else model.contract.encoder,
                num_tokens=model.contract.action.size,
                state=() if felt is None else tuple(zip(felt.recorded_names, felt.units, strict=True)),
            )
            number = len(self._layouts)
            if not self._put(LayoutTold(number=number, layout=layout)):
                return -1
            self._layouts[key] = number
        return self._layouts[key]

    def _put_ends(self) -> None:
        while self._ends and self._put(self._ends[0]):
            self._ends.popleft()

    def _put(self, message: Message) -> bool:
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self.lost += isinstance(message, RecordedStep)
            return False
        return True


def _received(question: Question, role: str, roles: Sequence[str], frame_HWC: np.ndarray) -> bytes | None:
    """The JPEG that a camera's frame came as, if it has the size that the policy saw."""
    picture = question.picture(role, roles)
    if isinstance(picture, str) and not picture.startswith(_JPEG_IN_BASE64):
        return None
    try:
        encoded = base64.b64decode(picture, validate=True) if isinstance(picture, str) else picture
        if isinstance(encoded, bytes) and encoded.startswith(JPEG) and image_size(encoded) == frame_HWC.shape[:2]:
            return encoded
    except ValueError:  # no base64, or a header that is not read
        pass
    return None


def _pump(messages: queue.Queue[Message | None], told: Connection) -> None:
    """Hand messages on until None, then close the writer's pipe; where the writer is gone, forget them."""
    with told:
        while (message := messages.get()) is not None:
            try:
                told.send(message)
            except OSError:
                log.exception("nothing more is recorded: the process that writes episodes has ended")
                while messages.get() is not None:
                    pass
                return
