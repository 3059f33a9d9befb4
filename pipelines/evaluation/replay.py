"""Recorded episodes through a served policy: does the wire change what the model says?

Every frame of an episode is sent in order, as a robot would. At each step that `rtp evaluate` scores, the tokens must
be those that it predicts from the recorded window. Where they first differ, what the server has read tells why.

Axes: N scored steps, A dimensions of the policy.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from pipelines.evaluation.predictions import Predictions, predict_store
from pipelines.evaluation.scoring import as_acted
from pipelines.families.models import family_of
from pipelines.publishing.folder import TrainedModel
from pipelines.serving.client import PolicyClient
from pipelines.serving.request_values import camera_frame
from pipelines.terminal.progress_bar import Count, uncounted
from pipelines.training.data import require_readable
from preprocessing.masks.overlay import read_overlay
from preprocessing.store.episode_store import EpisodeStore, image_column
from preprocessing.store.robot_inputs import own_camera
from rt_models.action_tokens import decode
from rt_models.control.action import ActionOutlet
from rt_models.spec import MAIN_CAMERA, of_role

Answer = Mapping[str, Any]

_SAME_VALUE = 1e-5
"""Relative to the value: what float32 leaves of one."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first step at which the served policy says something else."""

    episode: int
    step: int
    cause: str
    """contract, image, state, history, instruction, plan, model, gripper, scaling or limits."""
    explanation: str


@dataclass(frozen=True, kw_only=True)
class ReplayReport:
    """What a replay came to."""

    episodes: int
    steps: int
    """Scored steps: those that `rtp evaluate` scores."""
    tokens: int
    same_tokens: int
    first_difference: Difference | None

    @property
    def agrees(self) -> bool:
        return self.first_difference is None

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "agrees": self.agrees}


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A frame as it is sent, and the checksum of what the model reads as its instruction."""

    episode: int
    step: int
    observation: Mapping[str, object]
    instruction_crc32: int


class Expectation:
    """What `rtp evaluate` predicts for a store."""

    def __init__(self, trained: TrainedModel, store: EpisodeStore, *, batch: int = 64) -> None:
        require_readable(trained.contract, store)
        self.trained, self.store = trained, store
        model, contract = trained.model, trained.contract
        self.dataset = contract.dataset(store.name)
        family = family_of(model)
        answered_dims = family.answered_dims(model.config)
        predicted = predict_store(model, contract, store, batch=batch)
        self.outlet = ActionOutlet(model.spec, self.dataset, answered_dims)
        self.predictions: Predictions = as_acted(predicted, self.outlet)
        self.names = self.dataset.acted(contract.action)[0].names
        self.reads_text = family.instruction == "text"
        self.seen = [role for role in family.cameras(model.config) if role not in self.dataset.without_cameras]
        """The cameras, by role, that a robot sends."""
        self._num_frames, self._stride = family.num_frames(model.config), family.stride(model.config)
        self.overlay = read_overlay(store) if family.reads_object_masks(model.config) else None
        """The marks of a model that reads object masks, and the verbs that it is told."""
        places = zip(self.predictions.episode_N.tolist(), self.predictions.step_N.tolist(), strict=True)
        self.place_of = {place: number for number, place in enumerate(places)}

    def tokens_A(self, step: _Step) -> np.ndarray | None:
        """None where `rtp evaluate` scores nothing."""
        place = self.place_of.get((step.episode, step.step))
        return None if place is None else self.predictions.tokens_NA[place]

    def frames_seen(self, step: _Step) -> int:
        """Camera frames that an answer rests on."""
        return min(step.step // self._stride + 1, self._num_frames)

    def misread(self, step: _Step, read: Mapping[str, Any]) -> tuple[str, str] | None:
        """(cause, explanation) of the first picture, or the state, of which the server has `read` another content."""
        for role in self.seen:
            frame = camera_frame(step.observation[of_role("image", role)], self.trained.contract.recipe(role))
            if read.get(of_role("image_crc32", role)) != zlib.crc32(frame.tobytes()):
                whose = "" if role == MAIN_CAMERA else f" of camera {role}"
                return "image", f"the server has read other pixels from the recorded frame{whose}"
        side = self.dataset.state
        if side is not None:
            felt = np.array(side.physical(step.observation["state"]))
            if read.get("state_crc32") != zlib.crc32(felt.tobytes()):
                return "state", "the server has read another state than the recorded one"
        return None

    def columns(self) -> dict[str, str]:
        """The store's column of each field that a robot sends: pictures and state."""
        own = {role: own_camera(self.store, role) or role for role in self.seen}
        columns = {of_role("image", role): image_column(own[role]) for role in self.seen}
        return columns | ({"state": "proprio"} if self.dataset.state is not None else {})

    def as_sent(self, sensed: Mapping[str, object]) -> dict[str, object]:
        """Those fields as a robot sends them: of the state the values that the policy reads, by name."""
        side = self.dataset.state
        if side is None:
            return dict(sensed)
        recorded = np.asarray(sensed["state"]).tolist()
        felt = dict(zip(self.store.manifest.proprio.names, recorded, strict=True))
        return {**sensed, "state": {name: felt[name] for name in side.recorded_names}}

    def told(self, episode: int, place: int) -> tuple[str, np.ndarray]:
        """The instruction of an episode and its vector; `place` is its row in the store's table."""
        if self.overlay is None:
            return self.store.instruction_texts[place], np.asarray(self.store.embeddings[place], np.float32)
        verb = int(self.overlay.verb_E[episode])
        return self.overlay.verbs[verb], np.asarray(self.overlay.vectors_VD[verb], np.float32)

    def objects(self, episode: int) -> dict[str, object] | None:
        """The fields that say which objects are meant; None of an episode without marks, which nobody can act in."""
        if self.overlay is None:
            return {}
        marks, image = self.overlay.marks(episode), self.trained.contract.image
        if marks is None:
            return None
        places = {"object_box": marks.first, "second_object_box": marks.second}
        return {
            name: [place[0] * image.width, place[1] * image.height] * 2
            for name, place in places.items()
            if place is not None
        }

    def physical(self, tokens_A: np.ndarray) -> np.ndarray:
        """float32, one for each of `names`: the action that tokens (A,) stand for, in the robot's own space."""
        tokens_1A = torch.from_numpy(tokens_A[None])
        values_1A = decode(tokens_1A, self.trained.model.spec)
        return self.outlet.action(values_1A, tokens_1A, torch.ones(1), single=True).values


def replay(
    expected: Expectation, client: PolicyClient, *, episodes: int | None, counted: Count = uncounted
) -> ReplayReport:
    """Send the store's episodes, the first `episodes` or all, and compare."""
    tally = _Tally()
    for step in _steps(expected, episodes):
        answer = client.infer(step.observation)
        if "tokens" not in answer:
            raise ValueError("the server tells no tokens beside its actions, so it is no rtp serve: replay through one")
        counted(1)
        tally.episodes = step.episode + 1
        tokens_A = expected.tokens_A(step)
        if tokens_A is None:
            continue
        told_A = np.asarray(answer["tokens"])[0]
        tally.steps += 1
        tally.tokens += len(tokens_A)
        tally.same += int((told_A == tokens_A).sum()) if told_A.shape == tokens_A.shape else 0
        tally.first = tally.first or _difference(expected, client.metadata, step, tokens_A, answer)
    return ReplayReport(
        episodes=tally.episodes,
        steps=tally.steps,
        tokens=tally.tokens,
        same_tokens=tally.same,
        first_difference=tally.first,
    )


@dataclass
class _Tally:
    episodes: int = 0
    steps: int = 0
    tokens: int = 0
    same: int = 0
    first: Difference | None = None


# --- what is sent ---


def _steps(expected: Expectation, episodes: int | None) -> Iterator[_Step]:
    store, number = expected.store, 0
    counts = Counter(store.instruction_texts)
    for shard, entry in enumerate(store.shards):
        for episode in range(len(entry.episode_lengths)):
            if episodes is not None and number >= episodes:
                return
            objects = expected.objects(number)
            if objects is None:
                number += 1
                continue
            column_of = expected.columns()
            rows = store.read_episode(shard, episode, [*column_of.values(), "instruction"]).to_pylist()
            for step, row in enumerate(rows):
                place = int(np.searchsorted(store.instruction_ids, row["instruction"]))
                is_ambiguous = counts[store.instruction_texts[place]] > 1
                sensed = expected.as_sent({field: row[column] for field, column in column_of.items()})
                sensed |= objects if step == 0 else {}
                yield _step(expected, number, step, sensed, place, is_ambiguous=is_ambiguous)
            number += 1


def _step(
    expected: Expectation, episode: int, step: int, sensed: Mapping[str, object], place: int, *, is_ambiguous: bool
) -> _Step:
    """`sensed`: pictures, state and objects. The vector is sent of a text that has several, and of none."""
    store, (text, vector) = expected.store, expected.told(episode, place)
    instruction: dict[str, object] = {"prompt": text}
    if not expected.reads_text and (is_ambiguous or not text.strip()):
        instruction = {"embedding": vector}
    observation = {**sensed, "reset": step == 0, "explain": True, "dataset": store.name, **instruction}
    read = text.encode() if expected.reads_text else vector.tobytes()
    return _Step(episode=episode, step=step, observation=observation, instruction_crc32=zlib.crc32(read))


# --- what is different, and why ---


def _difference(
    expected: Expectation, metadata: Answer, step: _Step, tokens_A: np.ndarray, answer: Answer
) -> Difference | None:
    why = _why(expected, metadata, step, tokens_A, answer)
    return None if why is None else Difference(episode=step.episode, step=step.step, cause=why[0], explanation=why[1])


def _why(
    expected: Expectation, metadata: Answer, step: _Step, tokens_A: np.ndarray, answer: Answer
) -> tuple[str, str] | None:
    """(cause, explanation), the first thing that is not as it should be on the way of a frame; None if all is."""
    told_A = np.asarray(answer["tokens"])[0]
    if told_A.shape != tokens_A.shape or (told_A != tokens_A).any():
        return _why_tokens(expected, step, tokens_A, told_A, answer)
    return _why_values(expected, metadata, tokens_A, answer)


def _why_tokens(
    expected: Expectation, step: _Step, tokens_A: np.ndarray, told_A: np.ndarray, answer: Answer
) -> tuple[str, str]:
    contract, read, seen = expected.trained.contract, answer.get("read", {}), answer.get("frames_seen")
    if answer.get("contract") != contract.id:
        return "contract", f"the server has contract {answer.get('contract')}, the model {contract.id}"
    if misread := expected.misread(step, read):
        return misread
    if seen != expected.frames_seen(step):
        return "history", f"the answer rests on {seen} frames, not on {expected.frames_seen(step)}"
    if read.get("instruction_crc32") != step.instruction_crc32:
        return "instruction", "the server has read another vector or text for the recorded instruction"
    if "plan" in answer:
        return (
            "plan",
            "the server lets the model say a plan first, rtp evaluate does not: serve with --plan-tokens 0",
        )
    names = [name for name, a, b in zip(contract.action.names, tokens_A, told_A, strict=True) if a != b]
    bins = int(np.abs(tokens_A - told_A).max())
    return "model", f"the same input gives other tokens in {', '.join(names)}, by {bins} bins at most"


def _why_values(
    expected: Expectation, metadata: Answer, tokens_A: np.ndarray, answer: Answer
) -> tuple[str, str] | None:
    if metadata.get("adapter") != "Own":  # its numbers are another robot's; the tokens have been compared
        return None
    answered_A, right_A = np.asarray(answer["actions"])[0], expected.physical(tokens_A)
    near_A = np.isclose(answered_A, right_A, rtol=_SAME_VALUE, atol=1e-7, equal_nan=True)
    for name, answered, right, near in zip(
        expected.names, answered_A.tolist(), right_A.tolist(), near_A.tolist(), strict=True
    ):
        if near:
            continue
        cause = "limits" if name in answer.get("clipped", ()) else "gripper" if "gripper" in name else "scaling"
        return cause, f"the token of {name} stands for {right:.6g}, the server answers {answered:.6g}"
    return None
