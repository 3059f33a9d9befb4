"""A store of pairs filtered: what is kept, that the sums are right, and that an interruption changes nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocessing.filtering import filter_store as module
from preprocessing.filtering.filter_config import FilterConfig
from preprocessing.filtering.filter_store import DECISIONS, FilterSummary, filter_store
from preprocessing.store.web_store import WebStore
from preprocessing.web.convert_web import WebConvertConfig, convert_web
from tests.support.scored_pairs import scored_store
from tests.support.tiny_web import png, put

ROWS = 90  # 3 files of 30: 6 of each ten have a score that is good, or a copy's, or French


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return scored_store(tmp_path_factory.mktemp("scored"), per_file=30)


def filtered(store: str, out: Path, **settings: Any) -> FilterSummary:
    summary = filter_store(store, str(out), FilterConfig(workers=0, **settings))
    out_of = summary.kept + sum(summary.filtered.values()) + summary.duplicates + summary.quarantined
    assert summary.examples_in == out_of and sum(summary.reasons.values()) == summary.quarantined
    assert WebStore.open(summary.store).num_examples == summary.kept == sum(summary.languages.values())
    return summary


def answers(path: str) -> list[str]:
    return [answer for _, texts, _ in WebStore.open(path).texts() for answer in texts]


def files_of(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


def test_planted_pairs_are_separated_and_every_example_is_in_the_sum(store: str, tmp_path: Path) -> None:
    summary = filtered(store, tmp_path, keep=4 / 9, languages=("en", "und"))
    # of each ten: 1 has no score, 1 is French; of the other 8 the best 4/9 are good, other, copy and the best bad one
    assert (summary.examples_in, summary.quarantined, summary.duplicates) == (ROWS, 9, 9)
    assert summary.filtered == {"its language is not asked for": 9, "its score is too low": 40}
    assert summary.reasons == {"it has no score": 9} and summary.kept == 23
    kept = answers(summary.store)
    assert sum("good" in text for text in kept) == sum("other" in text for text in kept) == 9
    assert not any(word in text for text in kept for word in ("copy", "unscored", "voiture"))
    assert summary.lowest_score == pytest.approx(0.14)
    assert json.loads(Path(summary.store, "manifest.json").read_text())["filtered"]["languages_in"]["fr"] == 9


def test_the_decisions_name_the_original_of_every_copy(store: str, tmp_path: Path) -> None:
    table = pq.read_table(Path(filtered(store, tmp_path, keep=1.0).store, DECISIONS)).to_pylist()
    assert len(table) == ROWS
    copies = [row for row in table if row["verdict"] == "duplicate"]
    assert len(copies) == 9
    for copy in copies:
        original = table[copy["original"]]
        assert original["verdict"] == "kept" and copy["row"] == original["row"] + 2


def test_duplicates_are_kept_if_asked_and_pairs_differ_by_their_words(store: str, tmp_path: Path) -> None:
    assert filtered(store, tmp_path / "all", keep=1.0, duplicates="keep").duplicates == 0
    assert filtered(store, tmp_path / "pairs", keep=1.0, duplicates="pairs").duplicates == 0


@pytest.mark.parametrize("after", range(0, 7, 2))
def test_stopped_anywhere_and_run_again_the_files_are_the_same(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    whole = filtered(store, tmp_path / "whole", keep=0.5)
    calls = iter(range(100))

    def stopping(work: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            if next(calls) == after:
                raise KeyboardInterrupt
            return work(*arguments)

        return step

    for name in ("mark_shard", "_write_shard", "_write_manifest"):
        monkeypatch.setattr(module, name, stopping(getattr(module, name)))
    with pytest.raises(KeyboardInterrupt):
        filtered(store, tmp_path / "cut", keep=0.5)
    if after:
        with pytest.raises(ValueError, match="unfinished conversion begun with another keep"):
            filtered(store, tmp_path / "cut", keep=0.6)
    if after in (2, 4):  # what another filter has begun is no refusal's to remove
        assert list((tmp_path / "cut").rglob("*-marks.parquet"))
    resumed = filtered(store, tmp_path / "cut", keep=0.5)
    assert files_of(resumed.store) == files_of(whole.store)
    before = files_of(whole.store)
    assert filtered(store, tmp_path / "whole", keep=0.5).kept == whole.kept and files_of(whole.store) == before


def test_another_process_that_was_quicker_is_no_error(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = module.claimed

    def slow(*arguments: Any) -> Any:
        monkeypatch.setattr(module, "claimed", claimed)
        filtered(store, tmp_path / "out", keep=0.5)
        return claimed(*arguments)

    monkeypatch.setattr(module, "claimed", slow)
    monkeypatch.setattr(module, "_filtered", _once(module._filtered))
    summary = filtered(store, tmp_path / "out", keep=0.5)
    assert not Path(summary.store, ".progress").exists()


def _once(work: Callable[..., Any]) -> Callable[..., Any]:
    calls = iter([work])
    return lambda *arguments: next(calls)(*arguments)


def cut_after_marks(store: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The marks of a filter that was interrupted once it had looked at every shard."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "select", interrupted)
        filtered(store, out, keep=0.5)
    marks = sorted(out.rglob("*-marks.parquet"))
    assert len(marks) == 3
    return marks


def test_marks_of_an_earlier_version_are_taken_up(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They had no column of the pictures after the first."""
    whole = filtered(store, tmp_path / "whole", keep=0.5)
    marks = cut_after_marks(store, tmp_path / "cut", monkeypatch)
    for path in marks[:2]:
        pq.write_table(pq.read_table(path).drop_columns("further"), path)
    monkeypatch.setattr(module, "mark_shard", lambda *_: pytest.fail("a shard is looked at again"))
    resumed = filtered(store, tmp_path / "cut", keep=0.5)
    assert files_of(resumed.store) == files_of(whole.store)


@pytest.mark.parametrize("damage", ["cut", "other columns"])
def test_damaged_marks_cost_one_shard_and_not_all(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    whole = filtered(store, tmp_path / "whole", keep=0.5)
    marks = cut_after_marks(store, tmp_path / "cut", monkeypatch)
    if damage == "cut":
        marks[1].write_bytes(marks[1].read_bytes()[:100])
    else:
        pq.write_table(pa.table({"row": [1]}), marks[1])
    with pytest.raises(OSError, match=f"{marks[1]} cannot be read .*: delete this file and run rtp filter again"):
        filtered(store, tmp_path / "cut", keep=0.5)
    assert all(path.exists() for path in marks)
    marks[1].unlink()
    resumed = filtered(store, tmp_path / "cut", keep=0.5)
    assert files_of(resumed.store) == files_of(whole.store)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_scores_come_from_a_file_too(store: str, tmp_path: Path, kind: str) -> None:
    scores = [float(number) for number in np.random.default_rng(0).permutation(ROWS)]
    path = tmp_path / f"scores.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"score": scores}), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"score": score}) + "\n" for score in scores))
    else:
        with path.open("w") as file:
            csv.writer(file).writerows([["score"], *([score] for score in scores)])
    summary = filtered(store, tmp_path / "out", scorer=f"file:{path}", keep=0.1, duplicates="keep")
    best = sorted(range(ROWS), key=lambda place: -scores[place])[:9]
    assert answers(summary.store) == [answers(store)[place] for place in sorted(best)]


def test_a_filtered_store_is_filtered_again_and_its_scores_stay(store: str, tmp_path: Path) -> None:
    first = filtered(store, tmp_path / "first", keep=0.5)
    second = filtered(first.store, tmp_path / "second", keep=0.5)
    assert second.examples_in == first.kept and second.kept == round(first.kept / 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scorer": "file:nowhere.csv"}, "does not exist"),
        ({"scorer": "clip:nowhere"}, "has no config.json"),
        ({"min_score": 5.0}, r"not one of 90 examples would be kept .*: raise --keep, lower --min-score"),
        ({"languages": ("xx",)}, r"not one of 90 .*: --languages xx names none of those it has, \w+ \d+"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(store: str, tmp_path: Path, settings: Any, words: str) -> None:
    with pytest.raises((ValueError, OSError), match=words):
        filtered(store, tmp_path / "out", **settings)
    assert not list((tmp_path / "out").glob("*"))  # a refusal leaves nothing behind


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keep": 0.0}, "above 0"),
        ({"keep": 1.5}, "at most 1"),
        ({"scorer": "clips"}, "is not one of"),
        ({"scorer": "clip:"}, "is not one of"),
        ({"scorer": "none", "keep": 0.5}, "has no scores"),
        ({"duplicate_bits": 4}, "0 to 3"),
        ({"languages": ("en", " ")}, "give codes such as"),
        ({"min_score": float("nan")}, "finite"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FilterConfig(**settings)


def test_a_store_without_scores_says_where_to_get_them(tmp_path: Path) -> None:
    lines = [{"image": "a.png", "caption": "the a"}, {"image": "b.png", "caption": "the b"}]
    text = "\n".join(json.dumps(line) for line in lines).encode()
    put(tmp_path / "in", {"train.jsonl": text, "a.png": png(1), "b.png": png(1)}, images=())
    plain = convert_web(str(tmp_path / "in"), str(tmp_path / "stores"), WebConvertConfig(format="jsonl", workers=0))
    with pytest.raises(ValueError, match="preprocess its source with --score FIELD"):
        filtered(plain.store, tmp_path / "out")
    assert filtered(plain.store, tmp_path / "out", scorer="none").duplicates == 1
    with pytest.raises(ValueError, match="give another OUT"):
        filtered(plain.store, tmp_path / "stores", scorer="none")


def test_a_score_of_a_source_is_kept_as_it_is_whatever_its_form(tmp_path: Path) -> None:
    scores = [0.25, "0.5", None, "high", True, float("nan")]
    lines = [{"image": "a.png", "caption": f"the {n}", "s": s, "l": "en"} for n, s in enumerate(scores)]
    text = "\n".join(json.dumps(line) for line in lines).encode()
    put(tmp_path / "in", {"train.jsonl": text, "a.png": png(1)}, images=())
    config = WebConvertConfig(format="jsonl", score="s", language="l", workers=0)
    made = WebStore.open(convert_web(str(tmp_path / "in"), str(tmp_path / "out"), config).store)
    (row,) = made.read_shard(0, ["score", "language"]).to_pylist()
    assert row == {"score": [0.25, 0.5, None, None, None, None], "language": ["en"] * 6}
    with pytest.raises(ValueError, match="coco has no such field"):
        WebConvertConfig(format="coco", score="s")
