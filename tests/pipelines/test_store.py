"""`rtp store`: a store grows, shrinks and is divided from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.cli import main


def test_a_store_is_divided_joined_changed_and_its_log_shown(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = shutil.copytree(store, tmp_path / "whole")
    words = ["store", "split", str(whole), str(tmp_path / "parts"), "--shares", "one", "0.5", "two", "0.5", "--json"]
    assert main(words) == 0
    one, two = json.loads(capsys.readouterr().out.splitlines()[-1])["stores"]
    assert main(["store", "append", one["store"], two["store"], "--json"]) == 0
    grown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert grown["episodes"] == one["episodes"] + two["episodes"] and grown["written"] == 0
    assert main(["store", "delete", one["store"], "--episodes", "0", "--expect", grown["manifest"]]) == 0
    capsys.readouterr()
    assert main(["store", "log", one["store"]]) == 0
    said = capsys.readouterr().out
    assert "delete: 1 episodes deleted" in said and f"append: {two['episodes']} episodes added" in said
    assert main(["store", "prune", one["store"]]) == 0
    assert main(["inspect", one["store"], "--verify"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["store"], "rtp store takes append, delete"),
        (["store", "grow"], "not 'grow'"),
        (["store", "delete", "STORE"], "needs --episodes or --flag"),
        (["store", "split", "STORE", "OUT", "--shares", "a", "0.5"], "sum to 1"),
        (["store", "merge", "OUT", "STORE"], "two stores or more"),
    ],
)
def test_bad_input_is_one_sentence(
    store: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([store if word == "STORE" else word for word in words]) == 2
    assert message in capsys.readouterr().err
