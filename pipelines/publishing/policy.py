"""A trained model at work, from Python: camera frame and instruction in, an action by dimension name out.

    from pipelines.publishing.policy import load_policy

    policy = load_policy("runs/first")          # or a checkpoint, an exported folder, models:/NAME@ALIAS
    action = policy.act(frame, "open the drawer")
    action.values["world_vector_x"], action.units["world_vector_x"], action.absent

`pipelines/publishing/mlflow_policy.py` answers with the same classes. Needs neither Ray nor DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.families.base import Policy
from pipelines.families.models import family_of
from pipelines.publishing.folder import TrainedModel
from pipelines.serving.request_values import camera_frame, described, is_missing, numbers
from rt_models.control.action import Action
from rt_models.spec import EMBEDDING_WIDTH, Contract, DatasetContract


@dataclass(frozen=True, kw_only=True)
class NamedAction:
    """What one robot is to do now."""

    values: Mapping[str, float | None]
    """Physical value by dimension; None where the dimension is absent and has no neutral value."""
    units: Mapping[str, str]
    """Unit by dimension, such as m, rad, class, or unitless where the source's is unknown."""
    classes: Mapping[str, str]
    """Class by class dimension: {"terminate_episode": "arm"} beside its number 1.0 in `values`."""
    absent: tuple[str, ...]
    """Dimensions that the dataset does not have: no motion, the episode goes on, the gripper at the dataset's mean."""
    frames_seen: int
    """Camera frames that the answer rests on, this one included."""


def named(action: Action, contract: Contract, dataset: DatasetContract) -> NamedAction:
    """The action of one robot, by name."""
    names = contract.action.names
    values = {name: float(value) for name, value in zip(names, action.values, strict=True)}
    return NamedAction(
        values={name: None if np.isnan(value) else value for name, value in values.items()},
        units=dict(zip(names, dataset.units, strict=True)),
        classes={name: str(said) for name, said in action.classes.items()},
        absent=action.absent,
        frames_seen=int(action.frames_seen),
    )


class ModelAtWork:
    """A trained model with its instruction table: reads frames and instructions and begins episodes."""

    def __init__(self, trained: TrainedModel) -> None:
        self.contract, self.instructions = trained.contract, trained.instructions
        self._family, self._config = family_of(trained.model), trained.model.config
        self._policy_of = self._family.policies(trained.model)
        self._policies: dict[str, Policy] = {}

    @property
    def num_frames(self) -> int:
        """Camera frames that an answer may rest on."""
        return self._family.num_frames(self._config)

    def episode(self, dataset: DatasetContract) -> Policy:
        """A policy without a history yet; all share one copy of the weights."""
        if dataset.name not in self._policies:
            self._policies[dataset.name] = self._policy_of(dataset)
        return self._policies[dataset.name].for_another_robot()

    def frame(self, image: Any) -> np.ndarray:
        """uint8 (H, W, 3) as the training frames were; `camera_frame` says of what."""
        return camera_frame(image, self.contract.image)

    def instruction(self, text: Any, vector: Any = None) -> Any:
        """What the model reads: the text, or its vector (512,). Raises ValueError where there is none."""
        if not is_missing(vector):
            return self._vector(vector)
        if is_missing(text) or (text not in self.instructions.vectors and not str(text).strip()):
            raise ValueError("there is no instruction: give a text as instruction, or its vector as embedding")
        return str(text) if self._family.instruction == "text" else self.instructions.vector(str(text))

    def _vector(self, vector: Any) -> np.ndarray:
        if self._family.instruction == "text":
            raise ValueError("this policy reads instructions as text: send instruction instead of embedding")
        sized = hasattr(vector, "__len__") and len(vector) == EMBEDDING_WIDTH
        embedding = numbers(vector) if sized else np.zeros(())
        shape_fits = embedding.shape == (EMBEDDING_WIDTH,) and embedding.dtype.kind in "fiu"
        if not shape_fits or not np.isfinite(embedding).all():
            raise ValueError(f"embedding must be {EMBEDDING_WIDTH} finite numbers, got {described(vector)}")
        return embedding.astype(np.float32)


class LoadedPolicy:
    """Acts for one robot, whose last frames it keeps; a new instruction, or `reset`, begins a new episode."""

    def __init__(self, model: ModelAtWork, dataset: str | None) -> None:
        self.contract, self.dataset = model.contract, model.contract.dataset(dataset)
        self._model, self._episode = model, model.episode(self.dataset)

    def act(self, frame: Any, instruction: str | np.ndarray) -> NamedAction:
        """The action for the newest frame: uint8 (H, W, 3), or PNG or JPEG bytes, of any size.

        `instruction` is a text, or for an RT-1 also a float (512,) vector of the contract's encoder. Raises ValueError
        for what is no frame, and for a text that neither the table of training instructions nor the encoder knows.
        """
        text, vector = (instruction, None) if isinstance(instruction, str) else (None, instruction)
        read = self._model.instruction(text, vector)
        return named(self._episode.act(self._model.frame(frame), read), self.contract, self.dataset)

    def reset(self) -> None:
        """Begin an episode: forget the frames seen."""
        self._episode.reset()


def load_policy(source: str | Path, *, dataset: str | None = None) -> LoadedPolicy:
    """The policy of a run's output folder, a checkpoint, an exported folder (local or s3://, gs://) or
    models:/NAME@ALIAS.

    `dataset` names the one whose units and scale actions have, where the model was trained on several. Raises
    FileNotFoundError or ConnectionError where there is no model, and ValueError where the dataset must be named.
    """
    if str(source).startswith("models:/"):
        from pipelines.publishing.registered import fetch_registered

        return LoadedPolicy(ModelAtWork(fetch_registered(str(source))), dataset)
    from pipelines.publishing.trained_model import load_trained, with_instructions

    return LoadedPolicy(ModelAtWork(with_instructions(load_trained(str(source)))), dataset)
