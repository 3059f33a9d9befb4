"""The real command line in a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLE = REPOSITORY / "examples/metaworld_sample/1.0.0"

Rtp = Callable[..., dict[str, Any]]


def rtp_command(*arguments: object) -> list[str]:
    """The argument list that starts `rtp` with these arguments in a process of its own."""
    return [sys.executable, "-m", "pipelines", *map(str, arguments)]


def environment() -> dict[str, str]:
    """This process's environment, with the checkout importable and one thread for each of several processes."""
    kept = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    return kept | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
