"""Programs of the `dev` extra that lint files of other languages."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest


def linter(name: str) -> str:
    """Its path, in this environment's bin folder or on PATH; skips where it is not installed."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: the dev extra has it")
    return found
