"""Locks are tried with commands on the store of the pipelines tests, and ZeRO-3 stays within a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.zero import restore_linear
from tests.pipelines.conftest import store

__all__ = ["store"]


@pytest.fixture(autouse=True)
def torchs_own_linear_function() -> Iterator[None]:
    """An engine that is not closed leaves DeepSpeed's linear function to whatever this process computes next."""
    yield
    restore_linear()
