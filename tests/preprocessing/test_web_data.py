from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_web import (  # type: ignore[import-not-found]
    picture,
    png,
    write_coco,
    write_easy_vqa,
    write_gqa,
    write_jsonl,
    write_okvqa,
    write_parquet,
    write_vqav2,
    write_webdataset,
)

from preprocessing import web_data, web_sources
from preprocessing.episode_store import EpisodeStore
from preprocessing.web_data import WebConvertConfig, convert_web
from preprocessing.web_store import WebStore, open_store

Example = tuple[str, str, int]
ELSEWHERE = "is not named by a path below the folder of images"
CAPTION = {"image_id": 1, "caption": "a picture"}
PICTURES = [picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP")]


def converted(source: Path, out: Path, **settings: Any) -> tuple[WebStore, list[Example], list[dict[str, Any]]]:
    """The store, its (prompt, answer, number of references), and its quarantine."""
    summary = convert_web(str(source), str(out), WebConvertConfig(workers=0, **settings))
    store = WebStore.open(summary.store)
    assert summary.examples_in == summary.examples_out + summary.quarantined
    assert summary.examples_out == store.num_examples
    rows = [zip(*row, strict=True) for row in store.texts()]
    examples = [(prompt, answer, len(given)) for row in rows for prompt, answer, given in row]
    lines = Path(store.root, "quarantine.jsonl").read_text().splitlines()
    assert len(lines) == summary.quarantined
    return store, examples, [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("write", "name", "examples", "reasons"),
    [
        (
            write_vqav2,
            "vqav2",
            [("What color?", "red", 10), ("How many?", "two", 10), ("Is it?", "yes", 10)],
            ["its image image 11 is missing", "it has no annotation"],
        ),
        (write_okvqa, "okvqa", [("What animal?", "pony", 10)], []),
        (
            write_gqa,
            "gqa",
            [("Is it overcast?", "no", 1), ("What is it?", "sky", 1), ("Who is it?", "man", 1)],
            [],
        ),
        (write_coco, "coco", [*(("", f"a picture number {n}", 5) for n in range(5)), ("", "another", 1)], []),
        (
            write_webdataset,
            "webdataset",
            [("", "a red square", 1), ("what?", "that", 1)],
            ["it has neither question and answer nor a caption"],
        ),
        (
            write_parquet,
            "parquet",
            [("what?", "that", 3), ("which?", "one", 1)],
            ["its image is a path, not bytes"],
        ),
    ],
)
def test_every_layout_becomes_the_same_store(
    tmp_path: Path, write: Callable[[Path], None], name: Any, examples: list[Example], reasons: list[str]
) -> None:
    (tmp_path / "source").mkdir()
    write(tmp_path / "source")
    store, found, quarantine = converted(tmp_path / "source", tmp_path / "out", format=name)
    assert found == examples
    assert [line["reason"] for line in quarantine] == reasons
    assert store.manifest["counts"]["images"] == sum(shard.rows for shard in store.shards)


@pytest.mark.parametrize(("write", "name"), [(write_okvqa, "okvqa"), (write_gqa, "gqa"), (write_coco, "coco")])
def test_images_may_lie_elsewhere(tmp_path: Path, write: Callable[[Path], None], name: Any) -> None:
    together, annotations, images = tmp_path / "together", tmp_path / "annotations", tmp_path / "images"
    together.mkdir()
    write(together)
    _, expected, _ = converted(together, tmp_path / "out", format=name)
    annotations.mkdir()
    images.mkdir()
    for path in sorted(together.iterdir()):
        holds_text = path.suffix == ".json" or any(path.rglob("*.json"))
        path.rename((annotations if holds_text else images) / path.name)
    _, found, quarantine = converted(annotations, tmp_path / "apart", format=name, images=str(images))
    assert found == expected and not quarantine


def test_json_lines_with_and_without_images(tmp_path: Path) -> None:
    lines = [
        json.dumps({"image": "images/a.png", "question": "what?", "answer": "this"}),
        json.dumps({"image": "images/a.png", "caption": "a picture"}),
        json.dumps({"question": "what is the capital of France?", "answer": "Paris"}),
        json.dumps({"image": "images/lost.png", "caption": "lost"}),
        json.dumps({"image": "images/a.png", "question": "only asked"}),
        "no JSON at all",
    ]
    write_jsonl(tmp_path / "source", lines, ["a.png"])
    store, found, quarantine = converted(tmp_path / "source", tmp_path / "out", format="jsonl")
    assert found == [("what?", "this", 1), ("", "a picture", 1), ("what is the capital of France?", "Paris", 1)]
    assert store.read_rows(0, 0, ["image"])["image"].is_null().to_pylist() == [False, True]
    assert [line["place"] for line in quarantine] == ["train.jsonl:4", "train.jsonl:5", "train.jsonl:6"]


def test_one_bad_line_costs_only_itself(tmp_path: Path) -> None:
    """Names that are no file's, or lead out of the folder, and texts that are none."""
    good = {"image": "images/a.png", "question": "what?", "answer": "this"}
    bad: list[tuple[Any, str]] = [
        ({**good, "image": "../a.png"}, f"its image ../a.png {ELSEWHERE}"),
        ({**good, "image": "/a.png"}, f"its image /a.png {ELSEWHERE}"),
        ({**good, "image": "images"}, "its image images is missing"),
        ({**good, "image": "a\0b"}, "its image a\0b is missing"),
        ({**good, "image": "x" * 5000}, f"its image {'x' * 80} is missing"),
        ({**good, "image": 7}, f"its image 7 {ELSEWHERE}"),
        ({**good, "answer": "\ud800"}, "its text holds half a character (a lone surrogate)"),
        ({"question": "what?", "multiple_choice_answer": None}, "it has neither question and answer nor a caption"),
        ({**good, "answer": [None]}, "its answer is empty"),
        ([1], "the line is no JSON object"),
        (b"[" * 200_000, "the line is no JSON object"),
        (b'{"question": "\xff", "answer": "this"}', "the line is no JSON object"),
    ]
    (tmp_path / "a.png").write_bytes(png())
    write_jsonl(tmp_path / "source", [json.dumps(good)], ["a.png"])
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line, _ in bad]
    (tmp_path / "source/train.jsonl").write_bytes(b"\n".join([json.dumps(good).encode(), *lines]))
    _, found, quarantine = converted(tmp_path / "source", tmp_path / "out", format="jsonl")
    assert found == [("what?", "this", 1)]
    assert [line["reason"] for line in quarantine] == [reason for _, reason in bad]


@pytest.mark.parametrize(
    ("name", "files", "reason"),
    [
        (
            "vqav2",
            {
                "train_questions.json": {"questions": [{"question_id": 1, "image_id": "x", "question": "what?"}]},
                "train_annotations.json": {"annotations": [{"question_id": 1, "answers": ["this"]}]},
            },
            "its image image x is missing",
        ),
        (
            "okvqa",
            {
                "train_questions.json": {"questions": [{"question_id": 1, "image_id": 7, "question": "what?"}]},
                "train_annotations.json": {"annotations": [{"question_id": 1, "multiple_choice_answer": None}]},
            },
            "its answer is empty",
        ),
        ("gqa", {"train_questions.json": {"1": {"question": "what?", "imageId": "7"}}}, "its answer is empty"),
        (
            "coco",
            {"captions_train.json": {"images": [{"id": 1, "file_name": 3}], "annotations": [CAPTION]}},
            "its image 3 is missing",
        ),
        (
            "coco",
            {"captions_train.json": {"images": [{"id": 1, "file_name": "../out.png"}], "annotations": [CAPTION]}},
            "its image out.png is missing",
        ),
        (
            "easy_vqa",
            {"train/questions.json": [["what?", "this", "../../../out"]]},
            f"its image ../../../out.png {ELSEWHERE}",
        ),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: Any, files: dict[str, Any], reason: str) -> None:
    (tmp_path / "source/train").mkdir(parents=True)
    (tmp_path / "out.png").write_bytes(png())
    (tmp_path / "source/7.png").write_bytes(png())
    for file, content in files.items():
        (tmp_path / "source" / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(f"not one of 1 examples can be used ({reason})")):
        convert_web(str(tmp_path / "source"), str(tmp_path / "stores"), WebConvertConfig(format=name, workers=0))


def test_a_link_in_an_archive_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with tarfile.open(tmp_path / "source/train.tar", "w") as tar:
        for name, content in (("1.png", None), ("1.txt", b"seen"), ("2.png", png()), ("2.txt", b"seen")):
            member = tarfile.TarInfo(name)
            member.size = len(content or b"")
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member, io.BytesIO(content or b""))
    _, found, quarantine = converted(tmp_path / "source", tmp_path / "out", format="webdataset")
    assert found == [("", "seen", 1)]
    assert [line["reason"].split(" (")[0] for line in quarantine] == ["its image cannot be decoded"]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(
        st.sampled_from(["good", "cut", "tiny", "float", "text file", "empty answer", "long"]), min_size=1, max_size=9
    )
)
def test_nothing_is_lost(tmp_path_factory: pytest.TempPathFactory, kinds: list[str]) -> None:
    folder = tmp_path_factory.mktemp("web")
    lines = []
    for number, kind in enumerate(["good", *kinds]):
        answer = {"empty answer": " ", "long": "x" * 50}.get(kind, "yes")
        lines.append(json.dumps({"image": f"images/{number}.png", "question": "is it?", "answers": [answer]}))
    write_jsonl(folder / "source", lines)
    spoilt = {"cut": png(1)[:60], "tiny": png(1, size=(3, 5)), "float": png(1, mode="I;16"), "text file": b"hello"}
    for number, kind in enumerate(["good", *kinds]):
        (folder / "source" / "images" / f"{number}.png").write_bytes(spoilt.get(kind, png(number)))
    _, found, quarantine = converted(folder / "source", folder / "out", format="jsonl", max_characters=40)
    bad = [number for number, kind in enumerate(["good", *kinds]) if kind != "good"]
    assert [line["place"] for line in quarantine] == [f"train.jsonl:{number + 1}" for number in bad]
    assert len(found) == len(kinds) + 1 - len(bad)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_bytes_stop_a_conversion(data: st.DataObject) -> None:
    """A picture with any byte changed, or cut anywhere, is decoded or refused with a reason."""
    whole = bytearray(data.draw(st.sampled_from(PICTURES)))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    problem = web_data._image_problem(cut, WebConvertConfig(format="jsonl"))
    assert problem is None or (problem.startswith("its image ") and " at 0x" not in problem)  # the same in every run


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
    with pytest.raises((ValueError, OSError)):
        open_store(str(tmp_path / "out"))


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


def test_a_cut_archive_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_webdataset(tmp_path / "source")
    path = tmp_path / "source" / "train-0001.tar"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match="is cut or no tar archive"):
        convert_web(str(path.parent), str(tmp_path / "out"), WebConvertConfig(format="webdataset", workers=0))


def test_a_source_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist: give the folder"):
        convert_web(str(tmp_path / "none"), str(tmp_path / "out"), WebConvertConfig(format="jsonl", workers=0))


def test_the_captions_that_others_published(shared_dir: Path, tmp_path: Path) -> None:
    store, examples, quarantine = converted(shared_dir / "data/captions", tmp_path, format="jsonl")
    assert (len(examples), quarantine) == (25, [])
    assert all(prompt == "" and len(caption) > 20 for prompt, caption, _ in examples)
    assert store.name == "captions"
