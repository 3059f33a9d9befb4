"""A store for tests of locks, and a folder whose path is short enough for Ray's sockets."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.conftest import store

__all__ = ["store"]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder, as tmp_path, whose path leaves Ray room for the names of its sockets."""
    with tempfile.TemporaryDirectory(prefix="rtp-") as folder:
        yield Path(folder)
