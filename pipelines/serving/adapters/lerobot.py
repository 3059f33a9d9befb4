"""LeRobot's feature names: `observation.images.CAMERA`, `task`; the action in the policy's own order."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.serving.adapters.own import Own


@dataclass(frozen=True, kw_only=True)
class LeRobot(Own):
    """As a LeRobot data set of the same robot names its fields; of several cameras, name one in `image_keys`."""

    image_keys: tuple[str, ...] = ("observation.image", "observation.images.*")
    text_keys: tuple[str, ...] = ("task",)
