"""Perturbed frames, declared suites, other words; and `rtp evaluate` with all of them on the shipped sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cli import main
from pipelines.evaluation.perturbations import GRADED, blur, crop, darken, occlude
from pipelines.evaluation.suites import Suite, members, read_suites
from pipelines.evaluation.wordings import read_wordings, reworded
from pipelines.families.base import blank
from tests.support.untrained import write_untrained


@given(height=st.integers(4, 40), width=st.integers(4, 40), seed=st.integers(0, 99))
def test_every_perturbation_keeps_shape_and_type_and_grows(height: int, width: int, seed: int) -> None:
    frames = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), np.uint8))
    for changes in GRADED.values():
        for change in changes:
            changed = change(frames)
            assert changed.shape == frames.shape and changed.dtype == torch.uint8
            torch.testing.assert_close(change(frames[1:]), changed[1:])  # a frame does not depend on its neighbours
    distances = [(darken(frames, factor).float() - frames.float()).abs().mean() for factor in (0.75, 0.5, 0.25)]
    assert distances == sorted(distances)


def test_what_each_perturbation_does() -> None:
    frames = torch.full((1, 20, 20, 3), 100, dtype=torch.uint8)
    assert blank(frames).sum() == 0
    torch.testing.assert_close(blur(frames, 0.05), frames)  # nothing to blur
    torch.testing.assert_close(crop(frames, 0.5), frames)
    assert (occlude(frames, 0.5) == 128).sum() == 10 * 10 * 3
    point = torch.zeros_like(frames)
    point[0, 10, 10] = 255
    spread = blur(point, 0.05)
    assert 0 < spread[0, 10, 11, 0] < spread[0, 10, 10, 0] < 255
    assert crop(point, 0.5)[0].float().sum() > 2 * point.float().sum()  # nearer is larger


def test_suites_name_instructions_and_stores_by_pattern(tmp_path: Path) -> None:
    suites = {
        "faucets": Suite(instructions=("turn the faucet *",)),
        "kitchen": Suite(stores=("kitchen_?",)),
        "nothing": Suite(instructions=("fly",)),
    }
    found = members(suites, ["turn the faucet on", "open the drawer"], "kitchen_2")
    assert {name: member.tolist() for name, member in found.items()} == {
        "faucets": [True, False],
        "kitchen": [True, True],
    }


@pytest.mark.parametrize(
    "text, words",
    [
        ("[a]", "declares no suites"),
        ("seen: []", "says nothing"),
        ("seen: {instruction: [a]}", "no 'instruction': did you mean 'instructions'"),
        ("seen: {instructions: open}", "instructions is a list of texts, got 'open'"),
        ("seen: {", "is not YAML of plain data"),
    ],
)
def test_a_file_that_declares_no_suites_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "suites.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_suites(str(path))


@pytest.mark.parametrize(
    "text, words", [("[a]", "no instructions"), ("open: close", "list of texts"), ("a: [", "YAML")]
)
def test_a_file_without_other_words_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "words.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_wordings(str(path))


def test_wordings_are_counted_round() -> None:
    wordings = {"open": ("pull", "tear"), "close": ("shut",)}
    assert [reworded(wordings, number) for number in (0, 1, 2)] == [
        {"open": "pull", "close": "shut"},
        {"open": "tear", "close": "shut"},
        {"open": "pull", "close": "shut"},
    ]


def test_the_command_scores_suites_perturbations_and_other_words(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_untrained(store, tmp_path / "untrained")
    Path("suites.yaml").write_text("faucets: {instructions: ['turn the faucet *']}\nothers: {stores: [nowhere]}\n")
    Path("words.yaml").write_text("open the drawer: [pull the drawer open, slide the drawer open]\n")
    words = ["--robustness", "--suites", "suites.yaml", "--paraphrases", "words.yaml", "--bootstrap-samples", "20"]
    assert main(["evaluate", str(model), "--data", store, *words, "--html", "page.html", "--json"]) == 0
    printed = capsys.readouterr().out
    (report,) = json.loads(printed.splitlines()[-1])["evaluations"]
    found: dict[str, Any] = report["robustness"]
    assert {kind: list(graded) for kind, graded in found.items()} == {
        **{kind: ["1", "2", "3"] for kind in ("blur", "brightness", "occlusion", "crop")},
        "paraphrase": ["1", "2"],
    }
    assert list(report["suites"]) == ["faucets"] and 0 < report["suites"]["faucets"]["steps"] < report["steps"]
    assert report["negative_log_likelihood"]["mean"] > 3  # untrained: near ln 256
    assert set(report["diagnosis"]["dimensions"]) == set(report["dimensions"])
    page = Path("page.html").read_text()
    assert all(word in page for word in ("faucets", "occlusion 3", "paraphrase 2", "calibration", "bin predicted"))
    assert "faucets" in printed and "occlusion 3" in printed
    Path("words.yaml").write_text("fly: [soar]\n")
    assert main(["evaluate", str(model), "--data", store, *words]) == 2
    assert "other words for 'fly', and none for the instructions of" in capsys.readouterr().err
    assert main(["evaluate", str(model), "--data", store, "--paraphrases", "words.yaml"]) == 2
    assert "--paraphrases are scored with --robustness" in capsys.readouterr().err
