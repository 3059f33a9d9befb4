"""One question, caption or row counts once, whatever files it stands in; pictures are never guessed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocessing.web.convert_web import WebConvertConfig
from tests.support.tiny_web import (
    converted,
    put,
    write_coco,
    write_gqa,
    write_okvqa,
)

ELSEWHERE = "is not named by a path below the folder of images"
UNREAD = "its picture is named by 'image_id', which is not read: name it 'image'"
CAPTION = {"image_id": 1, "caption": "a picture"}


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
        assert (len(found), store.manifest.duplicates, quarantine) == (count, again, [])


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
    assert (found, store.manifest.duplicates) == ([("is it 1?", "yes", 1)], 1)
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
    assert (found, store.manifest.duplicates) == ([("", "one", 1)], 1)
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
    assert store.manifest.duplicates == 1
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
