"""Fixtures of the preprocessing tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny_rlds import bridge_episode, bridge_features, write_dataset


@pytest.fixture
def make_bridge(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """make_bridge(*shards) writes a dataset of bridge_dataset's schema; a shard is a list of episode lengths."""

    def make(*shards: Sequence[int], size: tuple[int, int] = (16, 24), name: str = "source") -> Path:
        rng = np.random.default_rng(7)
        episodes = [[bridge_episode(rng, length, size=size) for length in shard] for shard in shards]
        return write_dataset(tmp_path / name, "bridge_dataset", bridge_features(), episodes)

    yield make
