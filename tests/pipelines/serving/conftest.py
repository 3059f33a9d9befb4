"""One server for the tests of a file, and what its robots see."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from preprocessing.store.episode_store import EpisodeStore
from tests.support.policy_server import RunningServer, running, untrained


@pytest.fixture(scope="session")
def opened(store: str) -> EpisodeStore:
    return EpisodeStore.open(store)


@pytest.fixture(scope="session")
def frames(opened: EpisodeStore) -> list[bytes]:
    """JPEG frames of one episode, in order."""
    return opened.read_rows(0, 0, ["image"])["image"].to_pylist()[:6]


@pytest.fixture(scope="session")
def text(opened: EpisodeStore) -> str:
    return opened.instruction_texts[0]


@pytest.fixture(scope="module")
def server(opened: EpisodeStore) -> Iterator[RunningServer]:
    with running(untrained(opened)) as started:
        yield started
