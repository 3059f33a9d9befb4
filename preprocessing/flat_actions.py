"""Parts of flat action vectors that `Linear` and `Terminate` cannot say: values in another order, an end at a place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from preprocessing.action_parts import flat
from preprocessing.dataset_spec import GROUPS, Steps
from rt_models.action_space import ARM, TERMINATE


@dataclass(frozen=True, kw_only=True)
class Reordered:
    """canonical[:, i] = source[:, places[i]]: one group whose values stand in another order in the source."""

    group: str
    path: str
    unit: str
    places: tuple[int, ...]

    def __post_init__(self) -> None:
        whole = GROUPS[self.group]
        if len(self.places) != whole.stop - whole.start:
            raise ValueError(f"{self.group} has {whole.stop - whole.start} dimensions, places are {self.places}")

    @property
    def width(self) -> int:
        return len(self.places)

    def values(self, steps: Steps) -> np.ndarray:
        return flat(steps, self.path).astype(np.float64)[:, list(self.places)]


@dataclass(frozen=True, kw_only=True)
class TerminateAt:
    """The class of `terminate_episode` from one value of a flat action, which is 1 where the episode ends."""

    path: str
    place: int
    group: Literal["terminate_episode"] = "terminate_episode"
    width: Literal[1] = 1
    unit: str = "class"

    def values(self, steps: Steps) -> np.ndarray:
        return np.where(flat(steps, self.path)[:, self.place, None] == 1, TERMINATE, ARM)
