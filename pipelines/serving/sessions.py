"""The robots of a server: one history each, all with one copy of the weights.

A websocket connection is a robot for as long as it lasts. Over HTTP a robot is a name, forgotten after an idle time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.families.base import Policy
from pipelines.publishing.inference import InferenceModel
from pipelines.serving.limits import Limits
from pipelines.serving.question import Question
from pipelines.serving.refusal import Refusal
from rt_models.spec import DatasetContract


class Session:
    """One robot. Its history is touched by the thread that runs the model, and by no other."""

    def __init__(self, name: str, now: float) -> None:
        self.name, self.last_asked = name, now
        self._allowance = _Allowance(now)
        self._model: InferenceModel | None = None
        self._dataset = ""
        self._policy: Policy | None = None
        self._newest = -math.inf  # when the newest frame that was taken was received,
        self._began = -math.inf  # and the newest with which an episode began
        self.begins = False
        """Whether the next frame that is taken begins an episode: also where the one that said so was refused."""

    def require_rate(self, now: float, rate_hz: float) -> None:
        """Raises Refusal (429) where this robot asks faster than that."""
        self.last_asked = now
        if not self._allowance.take(now, rate_hz):
            raise Refusal(f"robot {self.name} asks more often than {rate_hz:g} times a second: ask less", status=429)

    def take(self, arrived: float) -> None:
        """Take a frame received at this time into the history. Raises Refusal (409) for one that was received before a
        frame that has been taken: over HTTP a larger picture is overtaken while it is read."""
        if arrived < self._newest:
            raise Refusal(f"a newer frame of {self.called} has been taken before this one was read", status=409)
        self._newest = arrived

    def note_reset(self, question: Question, arrived: float) -> None:
        """Let the next frame begin an episode if this question, received at this time, says so, whatever becomes of it:
        unless one has begun with a frame that was received later, such as the same question asked again."""
        self.begins |= question.reset and not question.stateless and arrived > self._began

    def begun(self, arrived: float) -> bool:
        """Whether an episode begins with the frame, received at this time, that is taken now."""
        begins, self.begins = self.begins, False
        if begins:
            self._began = arrived
        return begins

    @property
    def called(self) -> str:
        """In the middle of a sentence."""
        return f"robot {self.name}" if self.name else "this robot"

    def policy(self, model: InferenceModel, dataset: DatasetContract) -> Policy:
        """The robot's policy; a new one, without a history, where the model or the dataset is another than before."""
        if self._policy is None or self._model is not model or self._dataset != dataset.name:
            self._policy = model.episode(dataset)
            self._model, self._dataset = model, dataset.name
        return self._policy

    def forget_history(self, *, unless: InferenceModel) -> None:
        if self._model is not unless:
            self._policy, self._model = None, None


@dataclass
class _Allowance:
    """A token bucket that holds a second's worth of requests, and at least two."""

    last: float
    used: float = 0.0

    def take(self, now: float, rate_hz: float) -> bool:
        self.used = max(self.used - (now - self.last) * rate_hz, 0.0)
        self.last = now
        if self.used + 1 > max(rate_hz, 2.0):
            return False
        self.used += 1
        return True


class Sessions:
    """All robots of a server, at most `limits.max_robots`."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._named: dict[str, Session] = {}
        self._connected: set[Session] = set()

    def __len__(self) -> int:
        return len(self._named) + len(self._connected)

    def connected(self, name: str) -> Session:
        """A robot for the time of a connection, which `disconnected` ends. Raises Refusal (503) where all places are
        taken."""
        session = self._new(name)
        self._connected.add(session)
        return session

    def disconnected(self, session: Session) -> None:
        self._connected.discard(session)

    def named(self, robot: str) -> Session:
        """The robot of this name, known or new. Raises Refusal (503) where all places are taken."""
        if robot not in self._named:
            self._named[robot] = self._new(robot)
        return self._named[robot]

    def known(self, robot: str) -> Session | None:
        """The robot of this name, if it has a place."""
        return self._named.get(robot)

    def holds(self, session: Session) -> bool:
        """Whether this robot is remembered now."""
        return session in self._connected or self._named.get(session.name) is session

    def alone(self, name: str) -> Session:
        """For one frame without a history: it takes no place and is not remembered."""
        return Session(name, self._clock())

    def active(self, within_s: float) -> int:
        """Robots that have asked within these seconds."""
        since = self._clock() - within_s
        return sum(session.last_asked >= since for session in (*self._named.values(), *self._connected))

    def forget_histories(self, *, unless: InferenceModel) -> None:
        """But those of one model: nothing holds on to another that is no longer served. It belongs into the model's
        thread."""
        for session in (*self._named.values(), *self._connected):
            session.forget_history(unless=unless)

    def listed(self) -> list[dict[str, object]]:
        """The robots by name, with the seconds since each last asked."""
        now = self._clock()
        sessions = sorted((*self._named.values(), *self._connected), key=lambda session: session.name)
        return [{"name": session.name, "idle_s": round(now - session.last_asked, 3)} for session in sessions]

    def forget_idle(self) -> list[str]:
        """Forget HTTP robots that were idle for too long; their names."""
        since = self._clock() - self._limits.idle_s
        idle = [name for name, session in self._named.items() if session.last_asked < since]
        for name in idle:
            del self._named[name]
        return idle

    def _new(self, name: str) -> Session:
        if len(self) >= self._limits.max_robots:
            self.forget_idle()
        if len(self) >= self._limits.max_robots:
            raise Refusal(
                f"this server already serves {self._limits.max_robots} robots: let one of them go, or start it with a "
                f"larger --max-robots",
                field="robot",
                status=503,
            )
        return Session(name, self._clock())
