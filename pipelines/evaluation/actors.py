"""What acts in closed loop: a trained policy, and the baselines that look at no frame.

A task that one demonstration solves when it is replayed blindly proves nothing about a policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.evaluation.closed_loop import Episode
from pipelines.families.base import Instruction
from pipelines.publishing.inference import InferenceModel, named
from preprocessing.masks.phrases import phrase_of
from preprocessing.simulation.environment import Observation, state_of
from rt_models.action_space import ActionSpec
from rt_models.object_marks import MIDDLE
from rt_models.spec import MAIN_CAMERA, Contract, DatasetContract, ObjectMarks

BLIND = ("random", "mean_action", "replay")


class PolicyActor:
    """A trained model for one robot. `blank_images`: it sees black frames, to measure how much it uses the image;
    one that reads object masks is told the middle of the frame instead of its object's place. `shuffle_embeddings`:
    the numbers of each embedding come in an order drawn from the episode's seed, to measure how much it uses the
    instruction."""

    def __init__(
        self,
        model: InferenceModel,
        dataset: DatasetContract,
        *,
        blank_images: bool = False,
        shuffle_embeddings: bool = False,
    ) -> None:
        self._model, self._dataset, self.sees_frames = model, dataset, not blank_images
        self._shuffles = shuffle_embeddings
        recipes = {role: model.contract.recipe(role) for role in model.cameras(dataset)}
        self._black = {role: np.zeros((r.height, r.width, 3), np.uint8) for role, r in recipes.items()}
        self._policy = model.episode(dataset)
        self._instruction: Instruction = ""
        self._is_first = True

    def begin(self, episode: Episode) -> None:
        self._policy.reset()
        self._is_first = True
        text = _verb(episode.instruction) if self._model.reads_object_masks else episode.instruction
        self._instruction = self._model.instruction(text)
        if self._shuffles and not isinstance(self._instruction, str):
            self._instruction = np.random.default_rng(episode.seed).permutation(self._instruction)

    def act(self, observation: Observation) -> Mapping[str, float] | None:
        seen = {MAIN_CAMERA: observation.frame, **observation.further_frames} if self.sees_frames else self._black
        frames = self._model.frames(seen, self._dataset)
        if self._is_first and self._model.reads_object_masks:
            self._model.mark(self._policy, _marks(observation) if self.sees_frames else MIDDLE)
        self._is_first = False
        state = _read_of(self._dataset, state_of(observation)) if self._dataset.state is not None else None
        (acted,) = self._model.act([self._policy], [frames], [self._instruction], [state])
        action = named(acted, self._model.contract, self._dataset)
        if action.classes.get("terminate_episode") == "terminate":
            return None
        return {name: value for name, value in action.values.items() if value is not None}


def _verb(instruction: str) -> str:
    """What `rtp mask` leaves of an instruction."""
    phrase = phrase_of(instruction)
    if phrase is None:
        raise ValueError(f"instruction {instruction!r} names no object, and the policy is told verbs and marks")
    return phrase.verb


def _marks(observation: Observation) -> ObjectMarks:
    if observation.object_place is None:
        raise ValueError("the policy reads object masks, and this simulator does not say where its object is")
    return ObjectMarks(first=observation.object_place)


def _read_of(dataset: DatasetContract, state: Mapping[str, float]) -> dict[str, float]:
    """Those values that the policy reads; one that the simulator lacks is missed by the policy, by its name."""
    names = () if dataset.state is None else dataset.state.recorded_names
    return {name: state[name] for name in names if name in state}


class RandomActor:
    """Every dimension uniform between the 1 % and 99 % quantiles of its training actions; never terminates.

    The numbers are drawn from the episode's seed and task.
    """

    sees_frames = False

    def __init__(self, contract: Contract, dataset: DatasetContract) -> None:
        space, side = dataset.acted(contract.action)
        self._names, self._statistics = _moving(space), side.statistics
        self._random = np.random.default_rng(0)

    def begin(self, episode: Episode) -> None:
        self._random = np.random.default_rng([episode.seed, *episode.task.encode()])

    def act(self, observation: Observation) -> Mapping[str, float]:
        drawn = self._random.uniform(self._statistics.q01, self._statistics.q99)
        return {name: float(drawn[place]) for place, name in self._names}


class CopyActor:
    """Repeats the action of the step before; its first one is `RandomActor`'s. What is learnt from frames that are
    paired with the action before them, as copying predicts those best."""

    sees_frames = False

    def __init__(self, contract: Contract, dataset: DatasetContract) -> None:
        self._first, self._values = RandomActor(contract, dataset), None

    def begin(self, episode: Episode) -> None:
        self._first.begin(episode)
        self._values = None

    def act(self, observation: Observation) -> Mapping[str, float]:
        if self._values is None:
            self._values = self._first.act(observation)
        return self._values


class MeanActor:
    """Always the mean of the training actions; never terminates."""

    sees_frames = False

    def __init__(self, contract: Contract, dataset: DatasetContract) -> None:
        space, side = dataset.acted(contract.action)
        self._values = {name: float(side.statistics.mean[place]) for place, name in _moving(space)}

    def begin(self, episode: Episode) -> None:
        pass

    def act(self, observation: Observation) -> Mapping[str, float]:
        return self._values


class ReplayActor:
    """One recorded demonstration of the task, action by action, whatever the frame shows; at its end the episode ends.

    `demonstrations`: by task, physical values by dimension name of each step.
    """

    sees_frames = False

    def __init__(self, demonstrations: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
        self._demonstrations, self._steps = demonstrations, iter(())

    def begin(self, episode: Episode) -> None:
        self._steps = iter(self._demonstrations[episode.task])

    def act(self, observation: Observation) -> Mapping[str, float] | None:
        return next(self._steps, None)


def _moving(space: ActionSpec) -> list[tuple[int, str]]:
    """(place, name) of the dimensions that are no classes."""
    dimensions = enumerate(space.dimensions)
    return [(place, dimension.name) for place, dimension in dimensions if not dimension.discrete]
