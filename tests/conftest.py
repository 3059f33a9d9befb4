"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with real third-party data (data/) and golden logits (golden/); tests that need it skip without it."""
    folder = Path(os.environ.get("RTP_SHARED_DATA", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}: set RTP_SHARED_DATA to the folder that holds data/ and golden/")
    return folder
