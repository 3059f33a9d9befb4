"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: as many processes as cores run tests

settings.register_profile("rtp", deadline=None)  # a busy machine makes any example slow, and none wrong
settings.load_profile("rtp")

gc.disable()  # until all tests are collected, which imports everything


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Third-party data kept with the tests: Open-X schemas, Bridge episodes, golden logits (tests/data/NOTICE)."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="module", autouse=True)
def no_ray_left() -> Iterator[None]:
    """A Ray that one module's tests started in this process is not the next one's, nor is its SIGTERM handler."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
        signal.signal(signal.SIGTERM, handler)
