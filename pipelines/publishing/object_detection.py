"""Settings of what looks for objects that robots name. Light: `rtp serve --help` shows them."""

from __future__ import annotations

from dataclasses import dataclass

from preprocessing.masks.owl import OwlDetector


@dataclass(frozen=True, kw_only=True)
class ObjectDetection:
    """What looks for objects that robots name."""

    detector: str | None = None
    """owlvit:PATH, a folder with an OWL-ViT or OWLv2 of transformers: of a policy that reads object masks, robots may
    then name the object meant (object_name) instead of sending its box."""
    detector_threshold: float = 0.1
    """Lowest score, 0 to 1, of a box of the detector; an object that is not found is an error."""

    def __post_init__(self) -> None:
        kind, _, path = (self.detector or "owlvit:").partition(":")
        if kind != "owlvit" or (self.detector is not None and not path):
            raise ValueError(f"--detector {self.detector} is not owlvit:PATH")
        if not 0 <= self.detector_threshold <= 1:
            raise ValueError(f"--detector-threshold must be between 0 and 1, got {self.detector_threshold}")

    def build(self, device: str) -> OwlDetector | None:
        """Loaded onto this device of torch. Raises ValueError or OSError if there is no such model."""
        if self.detector is None:
            return None
        detector = OwlDetector(folder=self.detector.partition(":")[2], device=device)
        detector.require()
        return detector
