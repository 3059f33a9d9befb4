"""What a server tells the process that writes its episodes.

Axes: A dimensions of the robot's space, T dimensions of the policy's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rt_models.action_space import ActionSpec
from rt_models.spec import DatasetContract


@dataclass(frozen=True, kw_only=True)
class RobotLayout:
    """What the steps of one policy and data set hold: told once, before the first of them."""

    space: ActionSpec
    side: DatasetContract
    cameras: tuple[tuple[str, int, int], ...]
    """Role, height and width of each, the main camera's role is "image"."""
    encoder: str
    """Of the embeddings; empty where the policy reads text."""
    num_tokens: int
    state: tuple[tuple[str, str], ...] = ()
    """Name and unit of each value of the state that the policy reads, such as ("state/x", "m")."""


@dataclass(frozen=True, kw_only=True)
class RecordedStep:
    """One answer. `number` counts the steps of the episode, also those that never arrive: an episode with a gap is no
    episode."""

    episode: int
    robot: str
    layout: int
    number: int
    frames: Mapping[str, np.ndarray | bytes]
    """By role: uint8 (H, W, 3) as the policy saw it, or the JPEG that it was decoded from."""
    instruction: str
    embedding: np.ndarray | None
    values_A: tuple[float, ...]
    """Physical, NaN in absent dimensions without a neutral value."""
    tokens_T: np.ndarray
    contract: str
    model: str
    state: tuple[float, ...] = ()
    """Physical, in the order of the layout."""
    success: bool | None = None
    """Whether the task is solved at this frame; None: nobody said."""
    told_hz: float = 0.0
    """Steps a second as the robot says; 0 where it does not."""
    arrived: float = 0.0
    """When it was received, in seconds of a clock of the server's."""


@dataclass(frozen=True, kw_only=True)
class EpisodeEnd:
    """The episode had so many steps."""

    episode: int
    steps: int
    success: bool | None = None
    """Where something else than its steps says so."""


@dataclass(frozen=True, kw_only=True)
class LayoutTold:
    number: int
    layout: RobotLayout


Message = RecordedStep | EpisodeEnd | LayoutTold
