from __future__ import annotations

import io
import json
import math
import re
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
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
from preprocessing.images import decode_image
from preprocessing.loading.reader import LoaderConfig
from preprocessing.loading.web_reader import WebReader
from preprocessing.web_data import WebConvertConfig, convert_web
from preprocessing.web_store import WebStore, open_store

Example = tuple[str, str, int]
ELSEWHERE = "is not named by a path below the folder of images"
UNREAD = "its picture is named by 'image_id', which is not read: name it 'image'"
CAPTION = {"image_id": 1, "caption": "a picture"}
PICTURES = [picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP")]


def converted(source: Path, out: Path, **settings: Any) -> tuple[WebStore, list[Example], list[dict[str, Any]]]:
    """The store, its (prompt, answer, number of references), and its quarantine."""
    summary = convert_web(str(source), str(out), WebConvertConfig(workers=0, **settings))
    store = WebStore.open(summary.store)
    assert summary.examples_in == summary.examples_out + summary.quarantined + summary.duplicates
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


# --- One thing counts once: identity by id, splits by exact name ---


def put(folder: Path, files: dict[str, Any], images: tuple[str, ...] = ("7.png",)) -> Path:
    """JSON (or text, or bytes) and pictures below `folder`."""
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(len(name)))
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(data)
    return folder


def asked(number: int, image: int = 7) -> dict[str, Any]:
    return {"question_id": number, "image_id": image, "question": f"is it {number}?"}


def answered(number: int, answer: str = "yes") -> dict[str, Any]:
    return {"question_id": number, "image_id": 7, "answers": [{"answer": answer}]}


def gqa(*numbers: int, answer: str = "yes") -> dict[str, Any]:
    return {f"q{n}": {"question": f"is it {n}?", "answer": answer, "imageId": "7"} for n in numbers}


def test_balanced_questions_of_gqa_count_once(tmp_path: Path) -> None:
    files = {f"{split}_all_questions.json": gqa(1, 2, 3) for split in ("val", "test", "testdev")}
    files |= {f"{split}_balanced_questions.json": gqa(2) for split in ("val", "test", "testdev")}
    source = put(tmp_path / "gqa", files)
    for split, count, again in (("val", 3, 1), ("test", 3, 1), ("val_balanced", 1, 0), ("val_all", 3, 0)):
        store, found, quarantine = converted(source, tmp_path / "out", format="gqa", split=split)
        assert (len(found), store.manifest["duplicates"], quarantine) == (count, again, [])


def test_a_question_id_stands_for_one_question(tmp_path: Path) -> None:
    files = {"val_all_questions.json": gqa(1, 2), "val_balanced_questions.json": gqa(2, answer="no")}
    _, found, quarantine = converted(put(tmp_path / "gqa", files), tmp_path / "out", format="gqa", split="val")
    assert found == [("is it 1?", "yes", 1), ("is it 2?", "yes", 1)]
    assert [(line["place"], line["reason"]) for line in quarantine] == [
        ("question q2", "its id q2 stands for something else already")
    ]


def test_what_does_not_pair_is_accounted_by_question_id(tmp_path: Path) -> None:
    questions = [asked(1), asked(1), asked(2), {"question_id": 3, "question": "no image"}, asked(4), asked(6, 8)]
    questions += [asked(7), {**asked(7), "question": "is it another?"}]
    annotations = [answered(1), answered(1), answered(4), answered(4, "no"), answered(5), {"answers": []}, answered(6)]
    annotations += [answered(7)]
    files = {
        "v2_OpenEnded_mscoco_train2014_questions.json": {"questions": questions},
        "v2_mscoco_train2014_annotations.json": {"annotations": annotations},
        "v2_OpenEnded_mscoco_test-dev2015_questions.json": {"questions": [asked(9)]},
        "v2_OpenEnded_mscoco_test2015_questions.json": {"questions": [asked(9)]},
    }
    store, found, quarantine = converted(put(tmp_path / "vqa", files), tmp_path / "out", format="vqav2")
    assert (found, store.manifest["duplicates"]) == ([("is it 1?", "yes", 1)], 1)
    reasons = [(line["place"], line["reason"]) for line in quarantine]
    assert sorted(reason for place, reason in reasons if place == "question 7") == [
        "its id 7 stands for something else already",
        "its id stands for two questions that differ",
    ]
    assert {place: reason for place, reason in reasons if place != "question 7"} == {
        "question 2": "it has no annotation",
        "question 4 of the file": "it is not laid out as a question (KeyError: 'image_id')",
        "question 4": "it has two annotations that differ",
        "question 6": "its annotation is about another image",
        "annotation of question 5": "it has no question",
        "annotation 6 of the file": "it has no question_id",
    }


def test_captions_of_coco_are_accounted_by_annotation_id(tmp_path: Path) -> None:
    captions = [
        {"id": 1, "image_id": 7, "caption": "one"},
        {"id": 1, "image_id": 7, "caption": "one"},
        {"id": 1, "image_id": 7, "caption": "another"},
        {"id": 2, "image_id": 7, "caption": None},
        {"id": 3, "image_id": 9, "caption": "of no image"},
    ]
    images = [{"id": 7, "file_name": "7.png"}, {"id": 8, "file_name": "8.png"}, {"id": 9}]
    files = {"captions_val2014.json": {"images": images, "annotations": captions}}
    files |= {"captions_valminusminival2014.json": {"images": [], "annotations": []}}
    source = put(tmp_path / "coco", files, ("val2014/7.png", "val2014/8.png"))
    store, found, quarantine = converted(source, tmp_path / "out", format="coco", split="val")
    assert (found, store.manifest["duplicates"]) == ([("", "one", 1)], 1)
    assert {line["place"]: line["reason"] for line in quarantine} == {
        "annotation 1": "its id 1 stands for something else already",
        "annotation 2": "its caption is empty",
        "annotation 3": "it is not listed among the images",
        "image 8": "it has no caption",
        "image 3 of the file": "it is listed without id and file_name",
    }


@pytest.mark.parametrize("name", ["jsonl", "parquet"])
def test_rows_with_one_question_id_count_once(tmp_path: Path, name: Any) -> None:
    rows = [
        {"question_id": 1, "question": "a?", "answer": "yes"},
        {"question_id": 1, "question": "a?", "answer": "yes"},
        {"question_id": 1, "question": "a?", "answer": "no"},
        {"question_id": None, "question": "b?", "answer": "yes"},
        {"question_id": math.nan, "question": "b?", "answer": "yes"},
        {"question_id": math.nan, "question": "c?", "answer": "yes"},
    ]
    (tmp_path / name).mkdir()
    if name == "jsonl":
        (tmp_path / name / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name / "all.parquet")
    store, found, quarantine = converted(tmp_path / name, tmp_path / "out", format=name)
    assert found == [("a?", "yes", 1), ("b?", "yes", 1), ("b?", "yes", 1), ("c?", "yes", 1)]
    assert store.manifest["duplicates"] == 1
    assert [line["reason"] for line in quarantine] == ["its id 1 stands for something else already"]


def test_of_two_pictures_with_one_name_none_is_guessed(tmp_path: Path) -> None:
    files = {"train_questions.json": gqa(1)}
    source = put(tmp_path / "apart", files, ("train/7.png", "val/7.png"))
    assert len(converted(source, tmp_path / "out", format="gqa")[1]) == 1  # the split's own
    source = put(tmp_path / "both", files, ("a/7.png", "b/7.png"))
    with pytest.raises(ValueError, match="its image 7 is there 2 times"):
        converted(source, tmp_path / "out", format="gqa")


@pytest.mark.parametrize("folder", ["a[1]", "100%2F", "what?", "a*b"])
def test_signs_in_a_folder_are_no_pattern(tmp_path: Path, folder: str) -> None:
    source = put(tmp_path / folder, {"train_questions.json": gqa(1)})
    assert len(converted(source, tmp_path / "out", format="gqa", dataset="gqa")[1]) == 1


def test_folders_may_be_links(tmp_path: Path) -> None:
    images = put(tmp_path / "elsewhere", {})
    source = put(tmp_path / "gqa", {"train_questions.json": gqa(1)}, ())
    (source / "images").symlink_to(images)
    (source / "round").symlink_to(source)
    assert converted(source, tmp_path / "out", format="gqa")[1] == [("is it 1?", "yes", 1)]


@pytest.mark.parametrize("flag", ["split", "dataset", "version"])
@pytest.mark.parametrize("name", ["../up", "a/b", "", ".", "train[:10]"])
def test_names_of_folders_do_not_lead_out(flag: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"--{flag} .* must be letters"):
        WebConvertConfig(format="jsonl", **{flag: name})


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


def test_every_line_is_in_the_account(tmp_path: Path) -> None:
    """Whatever its neighbours are: lines of one picture become one row, and none of them vanishes in it."""
    good = {"image": "a.png", "question": "what?", "answer": "this"}
    talk = [{"from": "human", "value": "<image>\nwho?"}, {"from": "gpt", "value": "me"}]
    lines: list[tuple[bytes, str | None]] = [
        (b"\xef\xbb\xbf" + json.dumps(good).encode() + b"\r", None),
        (b"", None),
        (json.dumps({"image": "a.png"}).encode(), "it has neither question and answer nor a caption"),
        (json.dumps(good).encode() + b",", "the line holds more than one JSON object"),
        (json.dumps(good).encode() * 2, "the line holds more than one JSON object"),
        (b'{"image": "a.png", "answer": "x", "question": "q", "answer": "y"}', "the line gives a field twice"),
        (json.dumps({**good, "answer": math.nan}).encode(), "its answer is nan, not a text"),
        (json.dumps({**good, "question": None}).encode(), "it has an answer and no question"),
        (b"\t \r", None),
        (json.dumps({"image": "a.png", "conversations": talk}).encode(), None),
        (json.dumps({"conversations": talk}).encode(), "its conversation is about no picture"),
        (json.dumps({"caption": "a cup"}).encode(), "it is a caption without a picture"),
        (json.dumps({"image_id": "a.png", "caption": "a cup"}).encode(), UNREAD),
    ]
    source = put(tmp_path / "lines", {"all.jsonl": b"\n".join(line for line, _ in lines)}, ("a.png",))
    _, found, quarantine = converted(source, tmp_path / "out", format="jsonl")
    assert found == [("what?", "this", 1), ("who?", "me", 1)]
    expected = [(f"all.jsonl:{n}", reason) for n, (_, reason) in enumerate(lines, start=1) if reason]
    assert sorted((line["place"], line["reason"]) for line in quarantine) == sorted(expected)


def test_files_that_changed_are_read_anew(tmp_path: Path) -> None:
    for answer in ("no", "yes"):
        source = put(tmp_path / "gqa", {"train_questions.json": gqa(1, answer=answer)})
        assert converted(source, tmp_path / answer, format="gqa")[1] == [("is it 1?", answer, 1)]


def test_llava_is_read_as_published(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cup"}]
    talk += [{"from": "human", "value": "which colour?"}, {"from": "gpt", "value": "red"}]
    records = [{"id": "1", "image": "coco/7.png", "conversations": talk}, {"id": "2", "conversations": talk[2:]}, 7]
    source = put(tmp_path / "llava", {"llava_mix.json": records}, ("coco/7.png",))
    store, found, quarantine = converted(source, tmp_path / "out", format="llava")
    assert found == [("what?", "a cup", 1), ("which colour?", "red", 1)]
    assert store.manifest["counts"]["images"] == 1
    assert [(line["place"], line["reason"]) for line in quarantine] == [
        ("llava_mix.json:2", "its conversation is about no picture"),
        ("llava_mix.json:3", "it is no JSON object"),
    ]


def test_rows_of_parquet_are_accounted(tmp_path: Path) -> None:
    kept = {"bytes": png(), "path": None}
    rows: list[tuple[dict[str, Any], str | None]] = [
        ({"image": kept, "question": "what?", "answer": 2.5}, None),
        ({"image": kept, "question": "what?", "answer": math.nan}, "its answer is nan, not a text"),
        ({"image": kept, "question": None, "answer": 1.0}, "it has an answer and no question"),
        ({"image": kept, "question": None, "answer": None}, "it has neither question and answer nor a caption"),
        ({"image": None, "question": "words?", "answer": 1.0}, None),
        ({"image": {"bytes": None, "path": "a.png"}, "question": "?", "answer": 1.0}, "its image is a path, not bytes"),
        ({"image": {"bytes": b"", "path": ""}, "question": "?", "answer": 1.0}, "its image cannot be decoded"),
    ]
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.Table.from_pylist([row for row, _ in rows]), tmp_path / "rows/train.parquet")
    _, found, quarantine = converted(tmp_path / "rows", tmp_path / "out", format="parquet")
    assert found == [("what?", "2.5", 1), ("words?", "1", 1)]
    assert [line["reason"].partition(" (")[0] for line in quarantine] == [reason for _, reason in rows if reason]


def test_a_column_that_names_pictures_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    rows = [{"imageId": "7", "question": "what?", "answer": "this"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows/train.parquet")
    with pytest.raises(ValueError, match="its picture is named by 'imageId', which is not read"):
        converted(tmp_path / "rows", tmp_path / "out", format="parquet")


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
    assert [line["reason"].split(" (")[0] for line in quarantine] == ["its member is a link"]


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
    assert problem is not None or decode_image(cut).shape[-1] == 3  # what is let in, the loader reads


def test_pictures_are_judged_as_the_loader_reads_them(tmp_path: Path) -> None:
    """Kept or left out by the one rule for pictures, before anything is decoded that claims too much."""
    exif = Image.Exif()
    exif[0x0112] = 6
    scene = Image.open(io.BytesIO(png(3)))
    jpeg, lying, animated = io.BytesIO(), io.BytesIO(), io.BytesIO()
    scene.save(jpeg, "JPEG")
    scene.save(lying, "JPEG", exif=exif)
    scene.save(animated, "GIF", save_all=True, append_images=[scene.rotate(180)])
    whole = jpeg.getvalue()
    place = whole.index(b"\xff\xc0") + 5
    pictures = [
        (lying.getvalue(), ""),
        (whole[:-2] + bytes(17) + whole[-2:], ""),
        (png(1, mode="I;16"), "mode I;16, as depth images have"),
        (whole[:place] + bytes.fromhex("42687530") + whole[place + 4 :], "the image claims 17000x30000"),
        (animated.getvalue(), "the GIF is animated"),
        (whole[:-40] + whole[-2:], "premature end of data segment"),
    ]
    lines = [json.dumps({"image": f"images/{n}.png", "caption": "seen"}) for n in range(len(pictures))]
    write_jsonl(tmp_path / "source", lines, [f"{n}.png" for n in range(len(pictures))])
    for number, (encoded, _) in enumerate(pictures):
        (tmp_path / f"source/images/{number}.png").write_bytes(encoded)
    store, _, quarantine = converted(tmp_path / "source", tmp_path / "out", format="jsonl")
    assert len(quarantine) == 4
    for line, (_, reason) in zip(quarantine, pictures[2:], strict=True):
        assert reason in line["reason"]
    with closing(WebReader([store], frame_size=(16, 12), config=LoaderConfig())) as reader:
        kept = [text.image for text in reader.texts(np.arange(2)) if text.image is not None]
        upright, _ = reader.frames(kept)
    assert np.array_equal(upright, decode_image(lying.getvalue())) and upright.any(axis=(1, 2)).all()


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


def test_a_file_is_not_taken_for_its_folder(tmp_path: Path) -> None:
    source = put(tmp_path / "lines", {"train.jsonl": {}}, ()) / "train.jsonl"
    with pytest.raises(NotADirectoryError, match="is a file: give the folder that it lies in"):
        convert_web(str(source), str(tmp_path / "out"), WebConvertConfig(format="jsonl", workers=0))


def test_a_source_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist: give the folder"):
        convert_web(str(tmp_path / "none"), str(tmp_path / "out"), WebConvertConfig(format="jsonl", workers=0))


def test_the_captions_that_others_published(shared_dir: Path, tmp_path: Path) -> None:
    store, examples, quarantine = converted(shared_dir / "data/captions", tmp_path, format="jsonl")
    assert (len(examples), quarantine) == (25, [])
    assert all(prompt == "" and len(caption) > 20 for prompt, caption, _ in examples)
    assert store.name == "captions"
