"""An adapter makes a robot's observation a question, and an action the numbers that this robot's software expects.

Every adapter has an inverse: from the numbers back to physical values, which a test takes there and back. Absent
dimensions without a neutral value are NaN.

Axes: D numbers of a command.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.serving.observation import Observation, question
from pipelines.serving.question import Question
from rt_models.action_space import ActionSpec
from rt_models.spec import DatasetContract

Values = Mapping[str, float | None]
Units = Mapping[str, str]
"""Unit by dimension, as the policy's contract has them."""

IMAGE_KEYS = (
    "image",
    "observation/image",
    "observation/exterior_image_1_left",
    "full_image",
    "images.primary",
    "images.agentview",
    "images.image",
    "images.cam_high",
    "images.*",
    "observation.image",
    "observation.images.image",
    "observation.images.*",
)
TEXT_KEYS = ("prompt", "instruction", "task_description", "task")


@dataclass(frozen=True, kw_only=True)
class Adapter(ABC):
    """One robot's way of speaking. Configs: frozen, and built from a YAML file's fields."""

    image_keys: tuple[str, ...] = IMAGE_KEYS
    """Where the camera's picture may lie, the first that is there; NAME.CAMERA is one of a map of cameras."""
    text_keys: tuple[str, ...] = TEXT_KEYS
    """Where the instruction may lie."""

    def question(self, observation: Observation) -> Question:
        """Raises Refusal, naming the field."""
        return question(observation, image_keys=self.image_keys, text_keys=self.text_keys)

    @abstractmethod
    def missing(self, known: Sequence[str]) -> list[str]:
        """What a policy with the dimensions `known` lacks to be commanded through this adapter, in words."""

    @abstractmethod
    def names(self, known: Sequence[str]) -> Sequence[str]:
        """The names of the D numbers, for a policy with the dimensions `known`."""

    @abstractmethod
    def unit_of(self, name: str, units: Units) -> str:
        """The unit of one of the D numbers."""

    @abstractmethod
    def command(self, values: Values, units: Units) -> np.ndarray:
        """float32 (D,) from physical values by dimension."""

    def clipped(self, values: Values, units: Units) -> list[str]:
        """Which of the D numbers the adapter's own limits changed."""
        return []

    @abstractmethod
    def values(self, command: np.ndarray, units: Units) -> dict[str, float]:
        """The physical values that a command stands for: the inverse of `command`, where it is within limits."""

    def misread(self, space: ActionSpec, side: DatasetContract) -> str:
        """Why actions of `side` do not mean what this adapter takes their names for; empty where they do."""
        del space, side
        return ""

    def require_fitting(self, known: Sequence[str]) -> None:
        """Raise ValueError for a policy that lacks a dimension."""
        lacking = self.missing(known)
        if lacking:
            raise ValueError(
                f"adapter {type(self).__name__} commands {', '.join(lacking)}, which the policy does not have (it has "
                f"{', '.join(known)}): choose another --adapter"
            )


def changed(names: Sequence[str], command: np.ndarray, free: np.ndarray) -> list[str]:
    """The names of the numbers in which a command differs from what it is without limits."""
    same = np.isclose(command, free, rtol=1e-6, atol=0, equal_nan=True)
    return [name for name, is_same in zip(names, same.tolist(), strict=True) if not is_same]


def number(values: Values, name: str) -> float:
    value = values[name]
    return math.nan if value is None else value
