"""How an evaluation is run: the settings of `rtp evaluate`. Imports no torch, so that its help is at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from pipelines.config.compute import Compute
from pipelines.evaluation.statistics import Bootstrap


@dataclass(frozen=True, kw_only=True)
class WebScoreConfig:
    """How image-text examples are scored."""

    examples: int = 10_000
    """Examples to score at most, spread evenly over the store."""
    answer_tokens: int = 48
    """Longest answer in tokens."""

    def __post_init__(self) -> None:
        for flag, value in (("--web.examples", self.examples), ("--web.answer-tokens", self.answer_tokens)):
            if value < 1:
                raise ValueError(f"{flag} must be 1 or more, got {value}")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How an evaluation is run."""

    batch: int = 64
    """Windows per forward pass."""
    bootstrap_samples: int = 2000
    """Resamples of the episodes behind each 95 % interval."""
    perturbations: bool = True
    """Also score with blank images and with swapped instructions, to show what the policy looks at."""
    robustness: bool = False
    """Also score with frames blurred, darkened, covered and cropped, each in three strengths, and --paraphrases."""
    paraphrases: str | None = None
    """YAML file of instructions in other words, INSTRUCTION: [OTHER WORDS, ...]. With --robustness the policy is scored
    with them too; with --env it also acts with them."""
    suites: str | None = None
    """YAML file of suites, NAME: {instructions: [...], stores: [...]}, that scores are given for, such as seen tasks
    and unseen objects."""
    off_policy: bool = False
    """Also estimate the return that the policy would reach, where the recorded steps have rewards: fitted Q evaluation,
    and with --behaviour MODEL weighted importance sampling. The assumptions are printed beside."""
    seed: int = 0
    """Seed of the bootstrap resamples."""
    web: WebScoreConfig = field(default_factory=WebScoreConfig)
    compute: Annotated[Compute, tyro.conf.arg(name="")] = field(default_factory=Compute)

    def __post_init__(self) -> None:
        limits = (
            ("--batch", self.batch, 1),
            ("--bootstrap-samples", self.bootstrap_samples, 1),
            ("--seed", self.seed, 0),
        )
        for flag, value, least in limits:
            if value < least:
                raise ValueError(f"{flag} must be {least} or more, got {value}")

    def bootstrap(self) -> Bootstrap:
        return Bootstrap(samples=self.bootstrap_samples, seed=self.seed)
