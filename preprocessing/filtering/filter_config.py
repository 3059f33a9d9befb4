"""Settings of a filter of image-text examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from preprocessing.conversion.run_shards import require_gpu_share
from preprocessing.filtering.scorers import scorer_parts
from preprocessing.filtering.selection import MOST_BITS


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Settings of a filter."""

    scorer: str = "column"
    """Where the scores of picture and text come from: column (of the store: rtp preprocess --score FIELD), file:PATH
    (a .parquet, .jsonl or .csv with a column score, one an example in the store's order), clip:PATH or siglip:PATH (a
    folder of transformers), or none."""
    keep: float | None = None
    """Share of the examples to keep, those with the highest scores; by default 0.1, or all with --min-score or
    --scorer none."""
    min_score: float | None = None
    """Lowest score to keep."""
    languages: tuple[str, ...] = ()
    """Languages to keep, such as en de, in any case; en takes en-US along. und is text that is too short to tell. By
    default all are kept and counted."""
    duplicates: Literal["pictures", "pairs", "keep"] = "pictures"
    """What counts as a duplicate: an example whose picture is a copy of another row's, or only one that says the same
    of it too; of copies the one with the highest score stays. keep leaves them all in."""
    duplicate_bits: int = 3
    """Bits of 64, 0 to 3, by which the perceptual hashes of two copies may differ; thumbnails have to agree too."""
    workers: int | None = None
    """Shards read at once; by default as many as Ray has CPUs, 0 filters in this process without Ray."""
    gpu_share: float = 0.25
    """Share of a GPU that a worker with a clip or siglip takes, where Ray has GPUs free. 0.25 puts four workers on
    each, so that some read and prepare pictures while others compute; 0 computes on CPUs."""

    def __post_init__(self) -> None:
        kind, _ = scorer_parts(self.scorer)
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ValueError(f"--keep {self.keep} must be above 0 and at most 1: a share of the examples")
        if kind == "none" and (self.min_score is not None or self.share() < 1):
            raise ValueError("--scorer none has no scores to choose by: leave out --keep and --min-score")
        if self.min_score is not None and not np.isfinite(self.min_score):
            raise ValueError(f"--min-score must be a finite number, got {self.min_score}")
        if not 0 <= self.duplicate_bits <= MOST_BITS:
            raise ValueError(f"--duplicate-bits must be 0 to {MOST_BITS}, got {self.duplicate_bits}")
        if blank := [language for language in self.languages if not language.strip()]:
            raise ValueError(f"--languages names {blank[0]!r}: give codes such as en de und")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"--workers must be 0 or more, got {self.workers}")
        require_gpu_share(self.gpu_share)

    def share(self) -> float:
        """The share of the examples that pass by score."""
        if self.keep is not None:
            return self.keep
        return 0.1 if self.min_score is None and self.scorer != "none" else 1.0
