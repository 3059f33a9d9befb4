"""Examples about several pictures: read in their order, told apart from copies, scored by the mean, and counted."""

from __future__ import annotations

import io
import json
import re
import tarfile
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocessing.filtering.filter_config import FilterConfig
from preprocessing.filtering.filter_store import FilterSummary, filter_store
from preprocessing.loading.reader import LoaderConfig
from preprocessing.loading.web_reader import WebReader
from preprocessing.store.web_store import WEB_SCHEMA, WebStore
from preprocessing.web.convert_web import WebConvertConfig, convert_web
from preprocessing.web.several_pictures import numbered
from tests.support.scored_pairs import encoded, scene
from tests.support.tiny_web import converted, png, put

MOST = 4
_PAIRS = [{"image": "3.png", "text": "a dog"}, {"image": "1.png", "text": "its bowl"}]
_TALK = [{"from": "human", "value": "<image>\n<image>\nwhich is red?"}, {"from": "gpt", "value": "the first"}]


def plain(number: int) -> bytes:
    """A picture of one shade, which a decoded frame shows."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, number, number)).save(file, "PNG")
    return file.getvalue()


def shades(store: WebStore) -> list[tuple[list[int], str]]:
    """The shades of each example's pictures in their order, and its answer."""
    with closing(WebReader([store], frame_size=(8, 8), config=LoaderConfig())) as reader:
        found = reader.texts(np.arange(store.num_examples))
        return [([int(frame[0, 0, 0]) for frame in reader.frames(text.images)], text.answer) for text in found]


def lines_of(*lines: dict[str, Any]) -> bytes:
    return "\n".join(map(json.dumps, lines)).encode()


@settings(max_examples=15, deadline=None)
@given(pages=st.lists(st.lists(st.integers(0, 255), max_size=MOST + 1), min_size=1, max_size=7))
def test_pictures_come_back_in_their_order_and_all_examples_are_in_the_sum(
    tmp_path_factory: pytest.TempPathFactory, pages: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("pages")
    names = {f"{shade}.png": plain(shade) for page in pages for shade in page}
    lines = [
        {"image": [f"{shade}.png" for shade in page], "question": f"question {n}?", "answer": str(n)}
        for n, page in enumerate(pages)
    ]
    lines.append({"question": "is it?", "answer": "yes"})
    put(folder / "in", {"train.jsonl": lines_of(*lines), **names}, images=())
    store, _, quarantine = converted(folder / "in", folder / "out", format="jsonl", pictures=MOST)
    kept = [(page, str(n)) for n, page in enumerate(pages) if len(page) <= MOST]
    assert shades(store) == [*kept, ([], "yes")]
    assert [line["place"] for line in quarantine] == [
        f"train.jsonl:{n + 1}" for n, page in enumerate(pages) if len(page) > MOST
    ]
    rows = [page for page, _ in groupby(pages) if len(page) <= MOST]  # neighbours about the same pictures are one row
    assert store.manifest.counts.images == sum(map(len, rows))
    assert store.most_pictures == max([1, *(len(page) for page, _ in kept)])


@given(count=st.integers(2, 5), words=st.lists(st.text("ab7_é <>?", max_size=6), min_size=6, max_size=6))
def test_no_mark_is_left_and_every_picture_is_named_once(count: int, words: list[str]) -> None:
    question = f"{words[0]}<image>" + "".join(f"{word}<image>" for word in words[1:count]) + "end"
    marks = question.count("<image>")
    fields, problem = numbered({"question": question}, count)
    assert (problem is None) == (marks == count)
    if problem is None:
        said = str(fields["question"])
        named = [len(re.findall(rf"\bimage {number}\b", said)) for number in range(1, count + 1)]
        assert "<image>" not in said and named in ([0] * count, [1] * count)


@pytest.mark.parametrize(
    ("line", "example"),
    [
        ({"image": ["1.png", "2.png"], "conversations": _TALK}, ("which is red?", "the first", [1, 2])),
        (
            {"images": ["2.png", "1.png"], "question": "is <image> above <image>?", "answer": "no"},
            ("is image 1 above image 2?", "no", [2, 1]),
        ),
        ({"images": ["1.png"], "question": "<image> what?", "answer": "it"}, ("what?", "it", [1])),
        ({"pairs": _PAIRS}, ("", "image 1: a dog image 2: its bowl", [3, 1])),
        (
            {"images": ["1.png", "2.png", "3.png"], "question": "a<image>What of <image><image>?", "answer": "x"},
            ("a image 1 What of image 2 image 3?", "x", [1, 2, 3]),
        ),
        ({"image": "2.png", "images": ["1.png", "2.png"], "question": "?", "answer": "x"}, ("?", "x", [1, 2])),
        ({"image": "2.png", "images": [], "question": "?", "answer": "x"}, ("?", "x", [2])),
        ({"image": [], "images": ["1.png", "2.png"], "question": "?", "answer": "x"}, ("?", "x", [1, 2])),
        ({"image": "3.png", "images": ["1.png", "2.png"], "caption": "x"}, "its image is not among its images"),
        ({"image": ["3.png"], "images": ["1.png"], "caption": "x"}, "its image is not among its images"),
        ({"pairs": _PAIRS, "question": "which?", "answer": "x"}, "it has 'question' beside its pairs"),
        ({"pairs": _PAIRS, "conversations": _TALK}, "it has 'conversations' beside its pairs"),
        ({"pairs": _PAIRS, "caption": "a page"}, "it has 'caption' beside its pairs"),
        ({"pairs": _PAIRS, "image": "2.png"}, "it has 'image' beside its pairs"),
        ({"pairs": _PAIRS, "image": "", "answer": None}, ("", "image 1: a dog image 2: its bowl", [3, 1])),
        ({"images": ["1.png", "2.png"], "question": "<image>?", "answer": "x"}, "its text marks 1 pictures and it"),
        ({"images": ["1.png", None], "caption": "x"}, "its image None is not named by a path"),
        ({"images": ["1.png", "gone.png"], "caption": "x"}, "its image gone.png is missing"),
        ({"images": ["1.png", "../2.png"], "caption": "x"}, "is not named by a path below"),
        ({"pairs": ["1.png"]}, "its pairs are no list of objects"),
        ({"pairs": [{"image": "1.png", "text": " "}]}, "one of its pairs has no image or no text"),
        ({"image": ["1.png"] * 5, "caption": "x"}, "it has 5 pictures, and an example at most 4"),
    ],
)
def test_records_of_json_lines(tmp_path: Path, line: dict[str, Any], example: Any) -> None:
    files = {f"{shade}.png": plain(shade) for shade in (1, 2, 3)}
    sound = {"image": "3.png", "caption": "sound"}
    put(tmp_path / "in", {"train.jsonl": lines_of(sound, line), **files}, images=())
    store, found, quarantine = converted(tmp_path / "in", tmp_path / "out", format="jsonl", pictures=MOST)
    assert found[0][1] == "sound"
    if isinstance(example, str):
        assert len(found) == 1 and example in quarantine[0]["reason"]
    else:
        prompt, answer, seen = example
        assert (found[1][:2], shades(store)[1]) == ((prompt, answer), (seen, answer))


def test_parquet_and_archives_hold_several_too(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    rows = [
        {"images": [{"bytes": plain(9)}, {"bytes": plain(7)}], "question": "which?", "answer": "both", "s": 0.5},
        {"images": [{"bytes": plain(9)}, {"bytes": None}], "question": "which?", "answer": "none", "s": None},
        {"images": [], "question": "what?", "answer": "nothing", "s": 0.25},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table" / "train.parquet")
    settings = {"format": "parquet", "pictures": 2, "score": "s"}
    store, _, quarantine = converted(tmp_path / "table", tmp_path / "out", **settings)
    assert shades(store) == [([9, 7], "both"), ([], "nothing")]
    assert [line["reason"] for line in quarantine] == ["its image is a path, not bytes"]
    (tmp_path / "tars").mkdir()
    asked = {"question": "<image> or <image>?", "answer": "or"}
    text = json.dumps(asked).encode()
    members = {"a.0.png": plain(5), "a.1.png": plain(4), "a.json": text}
    members |= {"b.1.png": plain(2), "b.png": plain(3), "b.json": text}
    with tarfile.open(tmp_path / "tars" / "train.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    store, found, _ = converted(tmp_path / "tars", tmp_path / "out", format="webdataset", pictures=2)
    assert shades(store) == [([5, 4], "or"), ([2, 3], "or")] and found[0][0] == "image 1 or image 2?"


def test_a_store_of_one_picture_a_row_is_as_it_was(tmp_path: Path) -> None:
    """`--pictures` alone changes no row, and without it lists stay in quarantine."""
    lines = [{"image": "7.png", "caption": "one"}, {"image": ["7.png", "7.png"], "caption": "two"}]
    put(tmp_path / "in", {"train.jsonl": lines_of(*lines)})
    store, found, quarantine = converted(tmp_path / "in", tmp_path / "one", format="jsonl")
    assert (store.schema, found, len(quarantine)) == (WEB_SCHEMA, [("", "one", 1)], 1)
    assert "most_pictures" not in Path(store.root, "manifest.json").read_text()
    several, found, quarantine = converted(tmp_path / "in", tmp_path / "two", format="jsonl", pictures=2)
    assert (found, quarantine) == ([("", "one", 1), ("", "two", 1)], []) and several.most_pictures == 2
    with pytest.raises(ValueError, match=r"--pictures is for jsonl, .*, not for coco"):
        WebConvertConfig(format="coco", pictures=2)


# --- Filtered ---


def filtered(store: str, out: Path, **settings: Any) -> tuple[FilterSummary, list[str]]:
    summary = filter_store(store, str(out), FilterConfig(workers=0, **settings))
    out_of = summary.kept + sum(summary.filtered.values()) + summary.duplicates + summary.quarantined
    assert summary.examples_in == out_of
    return summary, [answer for _, texts, _ in WebStore.open(summary.store).texts() for answer in texts]


def test_copies_agree_in_every_picture_and_scores_are_means(tmp_path: Path) -> None:
    pictures = {f"{n}.jpg": encoded(scene(n), quality=95) for n in range(3)}
    pictures["0b.jpg"] = encoded(scene(0).resize((72, 72), Image.Resampling.LANCZOS), quality=80)
    pages = {
        "whole": (["0.jpg", "1.jpg"], [0.9, 0.7]),  # mean 0.8
        "copy": (["0b.jpg", "1.jpg"], [0.6, 0.6]),
        "other": (["0.jpg", "2.jpg"], [0.9, 0.5]),
        "turned": (["1.jpg", "0.jpg"], [0.5, 0.5]),
        "longer": (["0.jpg", "1.jpg", "2.jpg"], [0.4, 0.4, 0.4]),
        "alone": (["0.jpg"], [0.3]),
        "unscored": (["2.jpg", "1.jpg"], [0.9, None]),
    }
    lines = [
        {"pairs": [{"image": i, "text": name, "s": s} for i, s in zip(*page, strict=True)], "l": "en"}
        for name, page in pages.items()
    ]
    put(tmp_path / "in", {"train.jsonl": lines_of(*lines), **pictures}, images=())
    config = WebConvertConfig(format="jsonl", pictures=3, score="s", language="l", workers=0)
    store = convert_web(str(tmp_path / "in"), str(tmp_path / "stores"), config).store
    summary, kept = filtered(store, tmp_path / "all", keep=1.0)
    assert (summary.duplicates, summary.quarantined, summary.images) == (1, 1, 2 + 2 + 2 + 3 + 1)
    assert not any("copy" in text or "unscored" in text for text in kept)
    best, kept = filtered(store, tmp_path / "best", min_score=0.75, duplicates="keep")
    assert kept == ["image 1: whole image 2: whole"] and best.lowest_score == pytest.approx(0.8)
    assert shades(WebStore.open(best.store))[0][1] == kept[0] and WebStore.open(best.store).most_pictures == 3


def test_a_picture_that_is_cut_quarantines_its_example(tmp_path: Path) -> None:
    lines = [{"images": ["a.png", "b.png"], "caption": "x"}, {"image": "a.png", "caption": "y"}]
    put(tmp_path / "in", {"train.jsonl": lines_of(*lines), "a.png": png(1), "b.png": png(2)[:200]}, images=())
    _, found, quarantine = converted(tmp_path / "in", tmp_path / "out", format="jsonl", pictures=2)
    assert found == [("", "y", 1)] and "cannot be decoded" in quarantine[0]["reason"]
