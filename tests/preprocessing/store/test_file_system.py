"""A store of data that does not answer: what is asked twice is done once."""

from __future__ import annotations

import pytest

from preprocessing.store.file_system import RetryingFileSystem


class _Cut:
    """Removes what is there at the first request, whose answer is lost."""

    def __init__(self, *, there: bool) -> None:
        self._there = there

    def unstrip_protocol(self, name: str) -> str:
        return f"cut://{name}"

    def rm(self, path: str, recursive: bool = False) -> None:
        if not self._there:
            raise FileNotFoundError(path)
        self._there = False
        raise ConnectionError("the connection was cut")


def test_a_removal_whose_answer_was_lost_is_done() -> None:
    RetryingFileSystem(_Cut(there=True)).rm("bucket/progress", recursive=True)
    with pytest.raises(FileNotFoundError):
        RetryingFileSystem(_Cut(there=False)).rm("bucket/progress", recursive=True)
