"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("rtp", deadline=None)  # a busy machine makes any example slow, and none wrong
settings.load_profile("rtp")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with real third-party data (data/) and golden logits (golden/); tests that need it skip without it."""
    folder = Path(os.environ.get("RTP_SHARED_DATA", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}: set RTP_SHARED_DATA to the folder that holds data/ and golden/")
    return folder


@pytest.fixture(scope="module", autouse=True)
def no_ray_left() -> Iterator[None]:
    """A Ray that one module's tests started in this process is not the next one's."""
    yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
