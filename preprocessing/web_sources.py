"""Image-text data as others publish them -> records: one image, or none, with the questions or captions beside it.

Every format is cut into pieces that can be read alone, in an order that depends on the source only. What cannot be
paired (an annotation without its question, a line that is no JSON) comes as a record with a `problem`.

Layouts: VQAv2 and OK-VQA (questions and annotations JSON, image folder), GQA (questions JSON, image folder), COCO
captions JSON, easy-VQA, JSON lines, WebDataset tars, and Parquet as on the Hugging Face hub.
"""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import fsspec
import pyarrow.parquet as pq

Format = Literal["vqav2", "okvqa", "gqa", "coco", "easy_vqa", "jsonl", "webdataset", "parquet"]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_RECORDS_PER_PIECE = 1024
_TAR_END_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class WebExample:
    """What is asked of an image and what is to be said. `prompt` is empty for a caption; `references` are all answers
    that people gave, the one trained on among them."""

    prompt: str
    answer: str
    references: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class WebRecord:
    """`place` says where it stands in the source. `image` is the encoded file or None; `problem` why it is unusable."""

    place: str
    image: bytes | None
    examples: tuple[WebExample, ...]
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a source that becomes one shard: the records [start, stop) of a file's index, or a file (None)."""

    name: str
    num_bytes: int
    start: int | None = None
    stop: int | None = None


@dataclass(frozen=True, kw_only=True)
class WebSource:
    """A folder of image-text data, local or a URL, read as `format` says."""

    folder: str
    format: Format
    split: str
    images: str = ""
    """Folder of the images, where they do not lie below `folder`."""

    def pieces(self) -> tuple[Piece, ...]:
        """In the order of the source. Raises FileNotFoundError or ValueError where the layout is another one."""
        filesystem, root = _root(self.folder)
        if self.format in _WHOLE_FILES:
            suffix, _ = _WHOLE_FILES[self.format]
            paths = _files(filesystem, root, self.split, f"*.{suffix}")
            return tuple(Piece(name=path[len(root) + 1 :], num_bytes=filesystem.size(path)) for path in paths)
        count = len(_index(self))
        name = f"{self.format} {self.split}"
        starts = range(0, count, _RECORDS_PER_PIECE)
        return tuple(
            Piece(name=name, num_bytes=count, start=s, stop=min(s + _RECORDS_PER_PIECE, count)) for s in starts
        )

    def read(self, piece: Piece) -> Iterator[WebRecord]:
        """The records of a piece, in order."""
        filesystem, root = _root(self.folder)
        if piece.start is None:
            _, read = _WHOLE_FILES[self.format]
            yield from read(filesystem, f"{root}/{piece.name}", piece.name)
            return
        for entry in _index(self)[piece.start : piece.stop]:
            yield _with_image(filesystem, entry)


# --- Layouts with an index: annotations in JSON, images in a folder ---


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One image of an index with its texts. `image` is a path, "" for none; `problem` where it cannot be paired."""

    place: str
    image: str
    examples: tuple[WebExample, ...]
    problem: str | None = None


@lru_cache(maxsize=2)
def _index(source: WebSource) -> list[_Entry]:
    filesystem, root = _root(source.folder)
    try:
        images = _root(source.images)[1] if source.images else root
        entries = _INDEXES[source.format](filesystem, root, source.split, images)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{source.folder} is not laid out as {source.format} ({type(error).__name__}: {error}): "
            f"is --format the right one?"
        ) from error
    if not entries:
        raise ValueError(f"{source.folder} holds no {source.format} records of split {source.split!r}")
    return entries


def _with_image(filesystem: Any, entry: _Entry) -> WebRecord:
    problem, image = entry.problem, None
    if problem is None and entry.image:
        try:
            image = filesystem.cat_file(entry.image)
        except FileNotFoundError:
            problem = f"its image {entry.image.rpartition('/')[2]} is missing"
    return WebRecord(place=entry.place, image=image, examples=entry.examples, problem=problem)


def _vqa_index(filesystem: Any, root: str, split: str, image_root: str) -> list[_Entry]:
    """VQAv2 and OK-VQA: questions and annotations meet by question id; images are named by their id."""
    questions = _json_of(filesystem, root, split, "*questions.json", "questions")
    annotations = {a["question_id"]: a for a in _json_of(filesystem, root, split, "*annotations.json", "annotations")}
    images = _images_by_number(filesystem, image_root, split)
    grouped: dict[int, list[WebExample]] = {}
    entries = []
    for question in questions:
        annotation = annotations.get(question["question_id"])
        if annotation is None:
            place = f"question {question['question_id']}"
            example = WebExample(prompt=str(question["question"]), answer="", references=())
            entries.append(_Entry(place=place, image="", examples=(example,), problem="it has no annotation"))
            continue
        fields = {"question": question["question"], **annotation}
        grouped.setdefault(int(question["image_id"]), []).extend(examples_of(fields))
    return [_numbered(number, images, tuple(examples)) for number, examples in grouped.items()] + entries


def _gqa_index(filesystem: Any, root: str, split: str, image_root: str) -> list[_Entry]:
    """GQA: {question id: {question, answer, imageId}}, in one file or in several."""
    images = {_stem(path): path for path in _image_files(filesystem, image_root)}
    grouped: dict[str, list[WebExample]] = {}
    for path in _files(filesystem, root, split, "*questions*.json"):
        for fields in json.loads(filesystem.cat_file(path)).values():
            grouped.setdefault(str(fields["imageId"]), []).extend(examples_of(fields))
    return [
        _Entry(place=f"image {name}", image=images.get(name) or f"{name}.jpg", examples=tuple(examples))
        for name, examples in grouped.items()
    ]


def _coco_index(filesystem: Any, root: str, split: str, image_root: str) -> list[_Entry]:
    """COCO captions: images and annotations in one file; every caption of an image is a reference of the others."""
    path = _one_file(filesystem, root, split, "*captions*.json")
    data = json.loads(filesystem.cat_file(path))
    found = {path.rpartition("/")[2]: path for path in _image_files(filesystem, image_root)}
    captions: dict[int, list[str]] = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    names = {image["id"]: image["file_name"] for image in data["images"]}
    entries = []
    for number, texts in captions.items():
        name = names.get(number, "")
        problem = None if name else "it is not listed among the images"
        examples = examples_of({"captions": texts})
        place = f"image {number}"
        entries.append(_Entry(place=place, image=found.get(name) or name, examples=examples, problem=problem))
    return [entry for entry in entries if entry.examples]


def _easy_vqa_index(filesystem: Any, root: str, split: str, image_root: str) -> list[_Entry]:
    """easy-VQA: SPLIT/questions.json of [question, answer, image number], SPLIT/images/NUMBER.png."""
    path = f"{root}/{split}/questions.json"
    if not filesystem.exists(path):
        raise FileNotFoundError(f"{root} has no {split}/questions.json: give the unpacked easy-VQA data folder")
    grouped: dict[int, list[WebExample]] = {}
    for question, answer, number in json.loads(filesystem.cat_file(path)):
        grouped.setdefault(number, []).extend(examples_of({"question": question, "answer": answer}))
    return [
        _Entry(place=f"image {number}", image=f"{image_root}/{split}/images/{number}.png", examples=tuple(examples))
        for number, examples in grouped.items()
    ]


def _jsonl_index(filesystem: Any, root: str, split: str, image_root: str) -> list[_Entry]:
    """JSON lines: fields as `examples_of` reads them, "image" a path beside the file; neighbours share an image."""
    path = _one_file(filesystem, root, split, "*.jsonl")
    name = path.rpartition("/")[2]
    folder = path.rpartition("/")[0] if image_root == root else image_root
    entries: list[_Entry] = []
    for number, line in enumerate(filesystem.cat_file(path).decode("utf-8", "replace").split("\n"), start=1):
        if not line.strip():
            continue
        entry = _jsonl_entry(line, folder, f"{name}:{number}")
        if entry.problem is None and entry.image and entries and entries[-1].image == entry.image:
            last = entries.pop()
            entry = _Entry(place=last.place, image=last.image, examples=last.examples + entry.examples)
        entries.append(entry)
    return entries


def _jsonl_entry(line: str, folder: str, place: str) -> _Entry:
    try:
        fields = json.loads(line)
        examples = examples_of(fields)
    except (ValueError, AttributeError):
        return _Entry(place=place, image="", examples=(), problem="the line is no JSON object")
    image = fields.get("image") or ""
    return _Entry(
        place=place,
        image=f"{folder}/{image}" if image else "",
        examples=examples,
        problem=None if examples else "it has neither question and answer nor a caption",
    )


_INDEXES: dict[str, Callable[[Any, str, str, str], list[_Entry]]] = {
    "vqav2": _vqa_index,
    "okvqa": _vqa_index,
    "gqa": _gqa_index,
    "coco": _coco_index,
    "easy_vqa": _easy_vqa_index,
    "jsonl": _jsonl_index,
}


# --- Formats whose files are the pieces ---


def _read_tar(filesystem: Any, path: str, name: str) -> Iterator[WebRecord]:
    """WebDataset: neighbouring members of one key are a record; .json or .txt beside an image."""
    key, members = None, {}
    for member, data in _tar_members(filesystem, path):
        folder, _, base = member.rpartition("/")
        stem, _, suffix = base.partition(".")
        if key is not None and key != (folder, stem):
            yield _tar_record(f"{name}:{key[1]}", members)
            members = {}
        key = (folder, stem)
        members[suffix.lower()] = data
    if key is not None:
        yield _tar_record(f"{name}:{key[1]}", members)


def _tar_members(filesystem: Any, path: str) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each file of an archive, one after the other."""
    end = filesystem.tail(path, _TAR_END_BYTES)
    if len(end) < _TAR_END_BYTES or any(end):  # tarfile takes a cut header for the end
        raise ValueError(f"{path} is cut or no tar archive (it does not end in two empty blocks): fetch it again")
    try:
        with filesystem.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                extracted = tar.extractfile(member) if member.isfile() else None
                if extracted is not None:
                    yield member.name, extracted.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is cut or no tar archive ({error}): fetch it again") from error


def _tar_record(place: str, members: dict[str, bytes]) -> WebRecord:
    image = next((data for suffix, data in members.items() if f".{suffix}" in IMAGE_SUFFIXES), None)
    try:
        fields = json.loads(members["json"]) if "json" in members else {}
        examples = examples_of({"caption": members["txt"].decode()} if "txt" in members else fields)
    except (ValueError, AttributeError):
        return WebRecord(place=place, image=image, examples=(), problem="its text cannot be read")
    problem = None if examples else "it has neither question and answer nor a caption"
    return WebRecord(place=place, image=image, examples=examples, problem=problem)


def _read_parquet(filesystem: Any, path: str, name: str) -> Iterator[WebRecord]:
    """Hugging Face Parquet: an `image` of {bytes, path} or plain bytes, and texts as `examples_of` reads them."""
    with filesystem.open(path, "rb") as file:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(batch_size=128):
            for fields in batch.to_pylist():
                image = fields.get("image")
                image = image.get("bytes") if isinstance(image, Mapping) else image
                examples = examples_of(fields)
                problem = None if examples else "it has neither question and answer nor a caption"
                if isinstance(fields.get("image"), Mapping) and image is None:
                    problem = "its image is a path, not bytes"
                yield WebRecord(place=f"{name}:{number}", image=image, examples=examples, problem=problem)
                number += 1


_WHOLE_FILES: dict[str, tuple[str, Callable[[Any, str, str], Iterator[WebRecord]]]] = {
    "webdataset": ("tar", _read_tar),
    "parquet": ("parquet", _read_parquet),
}


# --- Texts and files ---


def examples_of(fields: Mapping[str, Any]) -> tuple[WebExample, ...]:
    """Question and answer(s), or caption(s), under the names that public sets use; none where there is neither.

    Of several answers the commonest is trained on, the first given of equally common ones.
    """
    question = fields.get("question") or fields.get("prompt") or ""
    answers = _texts(fields.get("answers")) or _texts(fields.get("answer"))
    if answers or (question and "multiple_choice_answer" in fields):
        chosen = fields.get("multiple_choice_answer") or max(answers, key=answers.count)
        return (WebExample(prompt=str(question), answer=str(chosen), references=tuple(answers or [str(chosen)])),)
    for name in ("captions", "caption", "sentences", "text"):
        captions = _texts(fields.get(name))
        if captions:
            return tuple(WebExample(prompt=str(question), answer=c, references=tuple(captions)) for c in captions)
    return ()


def _texts(value: Any) -> list[str]:
    """Texts of a text, a list of texts, or a list of {"answer": text} or {"raw": text}."""
    if value is None:
        return []
    items: Iterable[Any] = value if isinstance(value, list | tuple) else [value]
    return [
        str(item.get("answer") or item.get("raw") or "") if isinstance(item, Mapping) else str(item) for item in items
    ]


def _root(folder: str) -> tuple[Any, str]:
    filesystem, root = fsspec.core.url_to_fs(str(folder))
    if not filesystem.exists(root):
        raise FileNotFoundError(f"{folder} does not exist: give the folder of the image-text data")
    return filesystem, root.rstrip("/")


def _files(filesystem: Any, root: str, split: str, pattern: str) -> list[str]:
    """Files below `root` by pattern: those that name the split where any does, else all."""
    found = sorted({*filesystem.glob(f"{root}/{pattern}"), *filesystem.glob(f"{root}/**/{pattern}")})
    named = [path for path in found if split in path[len(root) :]]
    if not found:
        raise FileNotFoundError(f"{root} holds no {pattern}: is --format the right one?")
    if named or not any(_names_a_split(path[len(root) :]) for path in found):
        return named or found
    raise FileNotFoundError(f"{root} holds no {pattern} of split {split!r}, only {_short(found, root)}")


def _names_a_split(path: str) -> bool:
    return re.search(r"(^|[^a-z])(train|val|test|dev)", path.lower()) is not None


def _short(paths: list[str], root: str) -> str:
    names = [path[len(root) + 1 :] for path in paths[:3]]
    return ", ".join(names) + (" and more" if len(paths) > 3 else "")


def _one_file(filesystem: Any, root: str, split: str, pattern: str) -> str:
    found = _files(filesystem, root, split, pattern)
    if len(found) > 1:
        raise ValueError(f"{root} holds {len(found)} files {pattern} of split {split!r}: {_short(found, root)}")
    return found[0]


def _json_of(filesystem: Any, root: str, split: str, pattern: str, key: str) -> list[dict[str, Any]]:
    path = _one_file(filesystem, root, split, pattern)
    data = json.loads(filesystem.cat_file(path))
    if not isinstance(data, Mapping) or key not in data:
        raise ValueError(f"{path} has no list {key!r}: is --format the right one?")
    return data[key]


def _image_files(filesystem: Any, root: str) -> list[str]:
    return sorted(path for path in filesystem.find(root) if path.lower().endswith(IMAGE_SUFFIXES))


def _images_by_number(filesystem: Any, root: str, split: str) -> dict[int, str]:
    """Image files by the number that ends their name, those of the split's folder first."""
    numbered = [(re.search(r"(\d+)$", _stem(path)), path) for path in _image_files(filesystem, root)]
    ordered = sorted(numbered, key=lambda pair: split in pair[1][len(root) :])
    return {int(match[1]): path for match, path in ordered if match}


def _numbered(number: int, images: dict[int, str], examples: tuple[WebExample, ...]) -> _Entry:
    return _Entry(place=f"image {number}", image=images.get(number, f"image {number}"), examples=examples)


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]
