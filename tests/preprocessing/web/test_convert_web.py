"""Image-text data of every layout to a store: what comes out, and that nothing is lost."""

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

from preprocessing.loading.reader import LoaderConfig
from preprocessing.loading.web_reader import WebReader
from preprocessing.store.images import decode_image
from preprocessing.web import convert_web as web_data
from preprocessing.web.convert_web import WebConvertConfig, convert_web
from tests.support.tiny_web import (
    converted,
    picture,
    png,
    put,
    write_coco,
    write_gqa,
    write_jsonl,
    write_okvqa,
    write_parquet,
    write_vqav2,
    write_webdataset,
)

ELSEWHERE = "is not named by a path below the folder of images"
UNREAD = "its picture is named by 'image_id', which is not read: name it 'image'"
CAPTION = {"image_id": 1, "caption": "a picture"}
PICTURES = [picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP")]


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
    tmp_path: Path, write: Callable[[Path], None], name: Any, examples: list[tuple[str, str, int]], reasons: list[str]
) -> None:
    (tmp_path / "source").mkdir()
    write(tmp_path / "source")
    store, found, quarantine = converted(tmp_path / "source", tmp_path / "out", format=name)
    assert found == examples
    assert [line["reason"] for line in quarantine] == reasons
    assert store.manifest.counts.images == sum(shard.rows for shard in store.shards)


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
        source = put(
            tmp_path / "gqa",
            {"train_questions.json": {"1": {"question": "is it 1?", "answer": answer, "imageId": "7"}}},
        )
        assert converted(source, tmp_path / answer, format="gqa")[1] == [("is it 1?", answer, 1)]


def test_llava_is_read_as_published(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cup"}]
    talk += [{"from": "human", "value": "which colour?"}, {"from": "gpt", "value": "red"}]
    records = [{"id": "1", "image": "coco/7.png", "conversations": talk}, {"id": "2", "conversations": talk[2:]}, 7]
    source = put(tmp_path / "llava", {"llava_mix.json": records}, ("coco/7.png",))
    store, found, quarantine = converted(source, tmp_path / "out", format="llava")
    assert found == [("what?", "a cup", 1), ("which colour?", "red", 1)]
    assert store.manifest.counts.images == 1
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
        (
            {"image": {"bytes": None, "path": "https://x.org/a.png"}, "question": "?", "answer": 1.0},
            "its image is an address, not bytes: download the pictures into the column",
        ),
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
        ({**good, "image": "photos/2024/b.png"}, "its image photos/2024/b.png is missing"),
        ({**good, "image": "x" * 5000}, f"its image ...{'x' * 80} is missing"),
        (
            {**good, "image": "https://x.org/a.png"},
            "its image https://x.org/a.png is an address: download the picture, ",
        ),
        ({**good, "image": "data:image/png;base64,aGk="}, "its image data:image/png;base64,aGk= is an address: "),
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
    whole = [(line["reason"], reason) for line, (_, reason) in zip(quarantine, bad, strict=True)]
    assert all(said.startswith(reason) if reason.endswith(" ") else said == reason for said, reason in whole)


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
            "its image ../out.png is missing",
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


@pytest.mark.parametrize(("flag", "field"), [("score", "similarty"), ("score", "answer"), ("language", "Lang")])
def test_a_field_that_no_example_has_is_named(tmp_path: Path, flag: str, field: str) -> None:
    line = {"image": "images/a.png", "question": "?", "answer": "this", "similarity": 0.5, "lang": "en"}
    write_jsonl(tmp_path / "source", [json.dumps(line)], ["a.png"])
    with pytest.raises(ValueError, match=f"--{flag} {field}: no example has a"):
        converted(tmp_path / "source", tmp_path / "out", format="jsonl", **{flag: field})
    assert not (tmp_path / "out").exists()


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
        kept = [image for text in reader.texts(np.arange(2)) for image in text.images]
        upright, _ = reader.frames(kept)
    assert np.array_equal(upright, decode_image(lying.getvalue())) and upright.any(axis=(1, 2)).all()
