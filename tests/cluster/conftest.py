"""Locks are tried with commands on the store of the pipelines tests."""

from tests.pipelines.conftest import store

__all__ = ["store"]
