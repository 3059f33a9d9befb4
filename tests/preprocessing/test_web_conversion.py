"""Conversions of image-text data that are killed, run again, asked for the wrong thing or given damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import WebStore, open_store
from preprocessing.web import convert_web as web_data
from preprocessing.web import sources as web_sources
from preprocessing.web.convert_web import WebConvertConfig, convert_web
from tests.support.tiny_web import (
    converted,
    put,
    write_easy_vqa,
    write_jsonl,
    write_webdataset,
)

WEBDATASET: dict[str, Any] = {"format": "webdataset", "workers": 0}


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source of three pieces."""
    monkeypatch.setattr(web_sources, "_RECORDS_PER_PIECE", 2)
    write_easy_vqa(tmp_path / "source", [(f"question {n}?", "yes", n) for n in range(5)])
    return tmp_path / "source"


def test_a_conversion_that_was_killed_ends_with_the_same_bytes(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _, _ = converted(many, tmp_path / "whole", format="easy_vqa")
    take, taken = web_data._Account.take, []

    def dies(account: Any, record: Any) -> Any:
        taken.append(record.place)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return take(account, record)

    monkeypatch.setattr(web_data._Account, "take", dies)
    config = WebConvertConfig(format="easy_vqa", workers=0)
    with pytest.raises(KeyboardInterrupt):
        convert_web(str(many), str(tmp_path / "killed"), config)
    with pytest.raises(ValueError, match="holds an unfinished store"):
        WebStore.open(str(tmp_path / "killed"))
    summary = convert_web(str(many), str(tmp_path / "killed"), config)
    assert (summary.shards, summary.shards_converted) == (3, 2)
    for path in Path(whole.root).iterdir():
        assert Path(summary.store, path.name).read_bytes() == path.read_bytes()


def test_a_finished_store_is_left_alone_and_guards_its_settings(many: Path, tmp_path: Path) -> None:
    converted(many, tmp_path / "out", format="easy_vqa")
    again = convert_web(str(many), str(tmp_path / "out"), WebConvertConfig(format="easy_vqa", workers=0))
    assert again.shards_converted == 0
    with pytest.raises(ValueError, match="with another limits"):
        converted(many, tmp_path / "out", format="easy_vqa", max_characters=7)


def test_another_process_that_was_quicker_is_no_error(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, claimed = WebConvertConfig(format="easy_vqa", workers=0), web_data.claimed

    def slow(*arguments: Any) -> Any:
        monkeypatch.setattr(web_data, "claimed", claimed)
        convert_web(str(many), str(tmp_path / "out"), config)
        return claimed(*arguments)

    monkeypatch.setattr(web_data, "claimed", slow)
    summary = convert_web(str(many), str(tmp_path / "out"), config)
    assert (summary.shards, summary.shards_converted) == (3, 0)
    assert WebStore.open(summary.store).num_examples == 5 and not Path(summary.store, ".progress").exists()


def test_tars_of_the_user_in_the_very_folder_of_the_store_stay(tmp_path: Path) -> None:
    tars = tmp_path / "cc3m/1.0.0/train"
    tars.mkdir(parents=True)
    write_webdataset(tars)
    for number, path in enumerate(sorted(tars.rglob("*.tar"))):
        path.rename(tars / f"shard-{number:05d}.tar")
    before = {path.name: path.read_bytes() for path in tars.rglob("*.tar")}
    assert len(before) == 2
    with pytest.raises(ValueError, match="not one of"):
        convert_web(str(tmp_path / "cc3m"), str(tmp_path), WebConvertConfig(**WEBDATASET, max_characters=1))
    assert {path.name: path.read_bytes() for path in tars.rglob("*.tar")} == before
    convert_web(str(tmp_path / "cc3m"), str(tmp_path), WebConvertConfig(**WEBDATASET))
    assert {path.name: path.read_bytes() for path in tars.rglob("*.tar")} == before


def test_reports_of_older_code_do_not_say_which_fields_have_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = {"image": "images/a.png", "question": "?", "answer": "this", "similarity": 0.5}
    write_jsonl(tmp_path / "source", [json.dumps(line)], ["a.png"])
    config = WebConvertConfig(format="jsonl", score="similarity", workers=0)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(web_data, "_write_manifest", interrupted)
        convert_web(str(tmp_path / "source"), str(tmp_path / "out"), config)
    (report,) = (tmp_path / "out").rglob("00000.json")
    older = json.loads(report.read_text())
    del older["valued"]
    report.write_text(json.dumps(older))
    summary = convert_web(str(tmp_path / "source"), str(tmp_path / "out"), config)
    assert (summary.examples_out, summary.shards_converted) == (1, 0)


def test_the_two_kinds_of_store_know_each_other(many: Path, tmp_path: Path) -> None:
    store, _, _ = converted(many, tmp_path / "out", format="easy_vqa")
    assert isinstance(open_store(store.root), WebStore)
    with pytest.raises(ValueError, match="image-text examples"):
        EpisodeStore.open(store.root)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "coco"}, r"holds no \*captions\*.json: is --format the right one"),
        ({"format": "easy_vqa", "split": "test"}, "has no test/questions.json"),
        ({"format": "webdataset"}, r"holds no \*.tar"),
        ({"format": "easy_vqa", "max_characters": 2}, "not one of 5 examples can be used"),
    ],
)
def test_the_wrong_layout_is_one_sentence(many: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        convert_web(str(many), str(tmp_path / "out"), WebConvertConfig(workers=0, **settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("gqa", "train_questions.json", '{"1": {"question": "q", "answer": "a"}}', "not laid out as gqa"),
        ("gqa", "train_questions.json", "{", "train_questions.json cannot be read as JSON .*: fetch it again"),
        pytest.param(
            "gqa", "train_questions.json", "[" * 200_000, "cannot be read as JSON .*: fetch it again", id="deep"
        ),
        ("easy_vqa", "train/questions.json", '[["what?", "this"]]', "not laid out as easy_vqa"),
        ("coco", "captions_train.json", '{"questions": []}', "not laid out as coco"),
        ("webdataset", "train-0.tar", "no archive", "train-0.tar is cut or no tar archive .*: fetch it again"),
        ("parquet", "train-0.parquet", "no table", "train-0.parquet is damaged .*: fetch it again"),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path: Path, name: Any, file: str, text: str, message: str) -> None:
    (tmp_path / "source/train").mkdir(parents=True)
    (tmp_path / "source" / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        convert_web(str(tmp_path / "source"), str(tmp_path / "out"), WebConvertConfig(format=name, workers=0))
    assert not (tmp_path / "out").exists()


def test_a_cut_archive_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_webdataset(tmp_path / "source")
    path = tmp_path / "source" / "train-0001.tar"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match="is cut or no tar archive"):
        convert_web(str(path.parent), str(tmp_path / "out"), WebConvertConfig(format="webdataset", workers=0))


def test_a_file_is_not_taken_for_its_folder(tmp_path: Path) -> None:
    source = put(tmp_path / "lines", {"train.jsonl": {}}, ()) / "train.jsonl"
    with pytest.raises(NotADirectoryError, match="is a file: give the folder that it lies in"):
        convert_web(str(source), str(tmp_path / "out"), WebConvertConfig(format="jsonl", workers=0))


def test_a_source_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist: give the folder"):
        convert_web(str(tmp_path / "none"), str(tmp_path / "out"), WebConvertConfig(format="jsonl", workers=0))
