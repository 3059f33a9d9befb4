"""Small sources of image-text data, one for each layout that is read, and how many examples stand in one."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PICTURES = 6
Files = dict[str, bytes]


def picture(number: int, kind: str = "PNG") -> bytes:
    """A picture of 16 pixels a side that is turned by its EXIF, where its kind has that."""
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 1 + number % 8
    noise = bytes(random.Random(number).randrange(256) for _ in range(16 * 12 * 3))
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
    Image.frombytes("RGB", (16, 12), noise).save(out, kind, **options)
    return out.getvalue()


def pictures(folder: str, name: Callable[[int], str], *, kinds: tuple[str, ...] = ("JPEG", "PNG", "WEBP")) -> Files:
    suffixes = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
    made = [(name(number), kinds[number % len(kinds)]) for number in range(PICTURES)]
    return {f"{folder}{n}.{suffixes[kind]}": picture(i, kind) for i, (n, kind) in enumerate(made)}


def json_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def _fields(number: int) -> dict[str, Any]:
    """The texts of a record, of every form in turn."""
    talk = [{"from": "human", "value": "<image>\nwho?"}, {"from": "gpt", "value": "me"}]
    talk += [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "because"}]
    forms: list[dict[str, Any]] = [
        {"question": "what?", "answer": "this"},
        {"question_id": number, "question": "how many?", "answers": ["two", "two", "three"]},
        {"captions": ["a picture", "noise"]},
        {"conversations": talk},
        {"caption": "naïve 日本"},
        {"question": "is it?", "answers": [{"answer": "yes"}, {"answer": "no"}], "multiple_choice_answer": "yes"},
    ]
    return forms[number % len(forms)]


def jsonl() -> Files:
    images = pictures("images/", str)
    rows = [{"image": name, **_fields(number)} for number, name in enumerate(images)]
    rows += [{"image": name, "question": "again?", "answer": "yes"} for name in images]
    rows += [{"question": "words alone?", "answer": "yes"}]
    return {"train.jsonl": b"\n".join(map(json_bytes, rows)), **images}


def llava() -> Files:
    images = pictures("coco/", str)
    return {"mix.json": json_bytes([{"image": name, **_fields(3)} for name in images]), **images}


def vqav2() -> Files:
    questions = [{"question_id": n, "image_id": n % PICTURES, "question": f"what is {n}?"} for n in range(9)]
    answers = [
        {"question_id": n, "image_id": n % PICTURES, "answers": [{"answer": "a"}, {"answer": "b"}]} for n in range(9)
    ]
    images = pictures("train2014/", lambda n: f"COCO_train2014_{n:012}")
    return {
        "v2_OpenEnded_mscoco_train2014_questions.json": json_bytes({"questions": questions}),
        "v2_mscoco_train2014_annotations.json": json_bytes({"annotations": answers}),
        **images,
    }


def gqa() -> Files:
    everything = {f"q{n}": {"question": f"is it {n}?", "answer": "yes", "imageId": str(n % PICTURES)} for n in range(9)}
    balanced = dict(list(everything.items())[:3])
    files = {"train_all_questions.json": json_bytes(everything), "train_balanced_questions.json": json_bytes(balanced)}
    return {**files, **pictures("images/", str)}


def coco() -> Files:
    images = pictures("train2017/", lambda n: f"{n:012}")
    listed = [{"id": number, "file_name": name.rpartition("/")[2]} for number, name in enumerate(images)]
    captions = [{"id": n, "image_id": n % PICTURES, "caption": f"picture {n}"} for n in range(9)]
    return {"annotations/captions_train2017.json": json_bytes({"images": listed, "annotations": captions}), **images}


def easy_vqa() -> Files:
    questions = [[f"what is {n}?", "this", n % PICTURES] for n in range(9)]
    return {"train/questions.json": json_bytes(questions), **pictures("train/images/", str, kinds=("PNG",))}


def webdataset() -> Files:
    members: Members = []
    for number, (name, data) in enumerate(pictures("", lambda n: f"{n:04}").items()):
        members += [(name, data), (f"{number:04}.json", json_bytes(_fields(number))), (f"{number:04}.cls", b"3")]
        members += [(f"{number:04}.txt", b"a caption")] if number % 2 else []
    return {"train-0000.tar": packed(members), "train-0001.tar.gz": gzip.compress(packed(members[:6]))}


def parquet() -> Files:
    images = [{"bytes": data, "path": name} for name, data in pictures("", str).items()]
    rows = [{"image": image, **{"question": None, "answers": None, "caption": None}} for image in images]
    for number, row in enumerate(rows):
        row |= {"caption": "a picture"} if number % 3 == 0 else {"question": "what?", "answers": ["this", "that"]}
    return {"data/train-00000-of-00001.parquet": table_of(rows)}


def table_of(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


Members = list[tuple[str, bytes]]


def packed(members: Members, *, links: tuple[str, ...] = ()) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = 0 if name in links else len(data)
            info.type, info.linkname = (tarfile.SYMTYPE, "/etc/passwd") if name in links else (tarfile.REGTYPE, "")
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def unpacked(data: bytes) -> Members:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member.name, file.read()) for member in tar if (file := tar.extractfile(member))]


LAYOUTS: dict[str, Callable[[], Files]] = {
    function.__name__: function for function in (jsonl, llava, vqav2, gqa, coco, easy_vqa, webdataset, parquet)
}


def held(name: str, files: Files) -> int:
    """At least so many examples stand in a source that can still be read: lines, questions, keys, rows."""
    with suppress(Exception):
        return COUNTED[name](files)
    return 0


def _texts(files: Files) -> list[bytes]:
    return [data for path, data in files.items() if path.endswith((".json", ".jsonl"))]


COUNTED: dict[str, Callable[[Files], int]] = {
    "jsonl": lambda files: sum(bool(line.strip()) for line in _texts(files)[0].split(b"\n")),
    "llava": lambda files: len(json.loads(_texts(files)[0])),
    "vqav2": lambda files: len(json.loads(_texts(files)[0])["questions"]),
    "gqa": lambda files: sum(len(json.loads(text)) for text in _texts(files)),
    "coco": lambda files: len(json.loads(_texts(files)[0])["annotations"]),
    "easy_vqa": lambda files: len(json.loads(_texts(files)[0])),
    "webdataset": lambda files: sum(
        len({member.partition(".")[0] for member, _ in unpacked(data)}) for data in files.values()
    ),
    "parquet": lambda files: min(pq.read_metadata(io.BytesIO(data)).num_rows for data in files.values()),
}
