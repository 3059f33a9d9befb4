"""Every name in the list of long test files is a file: a renamed one would begin last and run alone."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import LONG_FILES

TESTS = Path(__file__).resolve().parents[1]


def test_every_long_file_exists() -> None:
    assert [name for name in LONG_FILES if not (TESTS / name).is_file()] == []
    assert len(set(LONG_FILES)) == len(LONG_FILES)
