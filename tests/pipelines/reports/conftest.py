"""Stores to draw are made from the episodes of the preprocessing tests."""

from tests.preprocessing.conftest import make_bridge

__all__ = ["make_bridge"]
