"""How a simulator showed the episodes of a dataset to its expert's recorder, so that a policy can be shown the same.

It stands in a contract and is no part of its id: what an action means does not depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class SimulatedSource:
    """What `rtp simulate` drew and how long it let an episode last."""

    simulator: str
    """As `rtp evaluate --env` names it: metaworld."""
    view: str
    """Where the main camera stood, by the simulator's name for it."""
    height: int
    """Of the main camera's pictures as they were drawn, in pixels."""
    width: int
    jpeg_quality: int
    """1 to 100."""
    control_hz: int
    """Recorded steps a second."""
    max_steps: int
    """Recorded steps of an episode at most."""

    def __post_init__(self) -> None:
        for name in ("height", "width", "control_hz", "max_steps"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number above 0, got {getattr(self, name)!r:.40}")
        if type(self.jpeg_quality) is not int or not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must be a whole number from 1 to 100, got {self.jpeg_quality!r:.40}")
        for name in ("simulator", "view"):
            if not isinstance(getattr(self, name), str) or len(getattr(self, name)) > 100:
                raise ValueError(f"{name} must be a word, got {getattr(self, name)!r:.40}")

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> SimulatedSource:
        """Raises ValueError for data of another form."""
        try:
            return SimulatedSource(**data)
        except TypeError as error:
            raise ValueError(f"this is no record of a simulator: {error}") from None
