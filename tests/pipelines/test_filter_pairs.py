"""`rtp filter`: the account in words, the page, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.cli import main
from tests.support.scored_pairs import scored_store


def test_the_command_filters_and_draws_what_it_kept_and_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = scored_store(tmp_path, files=2, per_file=10)
    words = ["filter", store, str(tmp_path / "out"), "--keep", "0.5", "--workers", "0", "--json"]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("examples in 20 = kept 7 + filtered 9 + duplicates 2 + quarantined 2")
    made = json.loads(said[-1])["store"]
    page = Path(made, "filter.html").read_text()
    assert page.count("data:image/jpeg") >= 20 and "http" not in page.replace("http-equiv", "")
    assert "Duplicates, each after what it is a copy of: 2" in page
    assert main(["inspect", made]) == 0
    said = capsys.readouterr().out
    assert "examples in 20 = out 7 + quarantined 2 + filtered 9 + duplicates 2" in said and "language: en" in said


def test_a_store_of_episodes_is_refused(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["filter", store, str(tmp_path / "out")]) == 2
    assert "is a store of robot episodes" in capsys.readouterr().err
    assert main(["filter", store, str(tmp_path / "out"), "--keep", "2"]) == 2
    assert "at most 1" in capsys.readouterr().err
