"""What every stage of gpu.py is given, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

Line = dict[str, Any]
"""A result: one line of JSON."""

SAMPLE = Path(__file__).resolve().parents[2] / "examples/metaworld_sample/1.0.0"
FRAME_SIZE = "256x320"
"""Of RT-1's camera: the sample's frames are stored at this size, but for a toy run."""


class Skipped(Exception):
    """The stage cannot run here. Its text says what it needs."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one run of gpu.py."""

    toy: bool = False
    """Small sizes, in seconds on a CPU."""
    rt1_pytorch: Path | None = None
    """Checkout of Rohan138/rt1-pytorch."""
