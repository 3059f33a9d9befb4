"""Image-text data in the layouts that others publish, a few records each."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from preprocessing.store.web_store import WebStore
from preprocessing.web.convert_web import WebConvertConfig, convert_web

Example = tuple[str, str, int]
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def png(seed: int = 0, *, size: tuple[int, int] = (12, 16), mode: str = "RGB") -> bytes:
    """An encoded picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def picture(kind: str) -> bytes:
    """An encoded picture of a format of Pillow's."""
    file = io.BytesIO()
    Image.open(io.BytesIO(png(3))).save(file, kind)
    return file.getvalue()


def write_images(folder: Path, names: Sequence[str]) -> None:
    """Pictures of noise, another for each name."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        (folder / name).write_bytes(png(seed))


def write_vqav2(folder: Path) -> None:
    """Three questions about two images with ten answers each, a fourth without annotation, an image that is missing."""
    write_images(folder / "train2014", ["COCO_train2014_000000000007.png", "COCO_train2014_000000000009.png"])
    questions = [(1, 7, "What color?"), (2, 7, "How many?"), (3, 9, "Is it?"), (4, 9, "Why?"), (5, 11, "Who?")]
    answers = {1: ["red"] * 7 + ["blue"] * 3, 2: ["two"] * 10, 3: ["yes"] * 10, 5: ["me"] * 10}
    listed = [{"question_id": q, "image_id": i, "question": t} for q, i, t in questions]
    annotated = [
        {
            "question_id": q,
            "image_id": next(i for n, i, _ in questions if n == q),
            "multiple_choice_answer": given[0],
            "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(given)],
        }
        for q, given in answers.items()
    ]
    name = "v2_OpenEnded_mscoco_train2014_questions.json"
    (folder / name).write_text(json.dumps({"questions": listed, "data_subtype": "train2014"}))
    (folder / "v2_mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": annotated}))


def write_okvqa(folder: Path) -> None:
    """As VQAv2, without the answer chosen."""
    write_images(folder / "train2014", ["COCO_train2014_000000000007.png"])
    answers = [{"answer": answer} for answer in ["pony"] * 6 + ["horse"] * 4]
    questions = {"questions": [{"question_id": 1, "image_id": 7, "question": "What animal?"}]}
    annotations = {"annotations": [{"question_id": 1, "image_id": 7, "answers": answers}]}
    (folder / "OpenEnded_mscoco_train2014_questions.json").write_text(json.dumps(questions))
    (folder / "mscoco_train2014_annotations.json").write_text(json.dumps(annotations))


def write_gqa(folder: Path) -> None:
    """GQA's layout."""
    write_images(folder / "images", ["2370799.png", "n12.png"])
    questions = {
        "1": {"question": "Is it overcast?", "answer": "no", "fullAnswer": "No.", "imageId": "2370799"},
        "2": {"question": "Who is it?", "answer": "man", "imageId": "n12"},
        "3": {"question": "What is it?", "answer": "sky", "imageId": "2370799"},
    }
    (folder / "train_balanced_questions.json").write_text(json.dumps(questions))


def write_coco(folder: Path) -> None:
    """COCO's captions."""
    write_images(folder / "train2017", ["000000000001.png", "000000000002.png"])
    images = [{"id": n, "file_name": f"{n:012}.png"} for n in (1, 2)]
    annotations = [{"image_id": 1, "id": n, "caption": f"a picture number {n}"} for n in range(5)]
    annotations.append({"image_id": 2, "id": 9, "caption": "another"})
    (folder / "annotations").mkdir()
    text = json.dumps({"images": images, "annotations": annotations})
    (folder / "annotations" / "captions_train2017.json").write_text(text)


def write_easy_vqa(folder: Path, questions: Sequence[tuple[str, str, int]]) -> None:
    """easy-VQA's layout, of (question, answer, image number)."""
    write_images(folder / "train" / "images", [f"{n}.png" for n in sorted({image for _, _, image in questions})])
    (folder / "train" / "questions.json").write_text(json.dumps(questions))


def write_jsonl(folder: Path, lines: Sequence[str], images: Sequence[str] = ()) -> None:
    """A file of one JSON object a line, and the pictures that it names."""
    write_images(folder / "images", images)
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")


def write_webdataset(folder: Path) -> None:
    """Two tars: a caption and a question; a record without text."""
    records = [
        {"a.png": png(0), "a.txt": b"a red square"},
        {"b.json": json.dumps({"question": "what?", "answer": "that"}).encode(), "b.png": png(1), "c.png": png(2)},
    ]
    for number, members in enumerate(records):
        with tarfile.open(folder / f"train-{number:04}.tar", "w") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_parquet(folder: Path) -> None:
    """A Parquet file with pictures inside."""
    rows = [
        {"image": {"bytes": png(0), "path": "a.png"}, "question": "what?", "answers": ["this", "that", "that"]},
        {"image": {"bytes": png(1), "path": "b.png"}, "question": "which?", "answers": ["one"]},
        {"image": {"bytes": None, "path": "c.png"}, "question": "lost?", "answers": ["yes"]},
    ]
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "train-00000-of-00001.parquet")


def colours_store(folder: Path) -> WebStore:
    """Three plain pictures with a question and a caption each, and two lines of language only."""
    source = folder / "colours"
    source.mkdir()
    lines: list[dict[str, str]] = []
    for name, colour in COLOURS.items():
        Image.new("RGB", (30, 20), colour).save(source / f"{name}.png")
        lines.append({"image": f"{name}.png", "question": "which colour is it?", "answer": name})
        lines.append({"image": f"{name}.png", "caption": f"a {name} picture, wider than it is high"})
    lines += [{"question": "what is two and two?", "answer": "four"}, {"question": "is it?", "answer": "no"}]
    (source / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = WebConvertConfig(format="jsonl", workers=0)
    return WebStore.open(convert_web(str(source), str(folder / "stores"), config).store)


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
