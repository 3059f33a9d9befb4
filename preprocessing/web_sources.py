"""Image-text data as others publish them -> records: one image, or none, with the questions or captions beside it.

Every format is cut into pieces that can be read alone, in an order that depends on the source only. What cannot be
paired (an annotation without its question, a line that is no JSON) comes as a record with a `problem`.

Layouts: VQAv2 and OK-VQA (questions and annotations JSON, image folder), GQA (questions JSON, image folder), COCO
captions JSON, easy-VQA, JSON lines; and those of web_archives.py, WebDataset tars and Parquet. Images are only read
from below the folder they are said to lie in.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import fsspec

from preprocessing.web_archives import WHOLE_FILES
from preprocessing.web_records import IMAGE_SUFFIXES, WebExample, WebRecord, answers_of, examples_of, parsed

Format = Literal["vqav2", "okvqa", "gqa", "coco", "easy_vqa", "jsonl", "webdataset", "parquet"]
_RECORDS_PER_PIECE = 1024
_NO_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)  # what only this image's name can be wrong in


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
        if self.format in WHOLE_FILES:
            suffix, _ = WHOLE_FILES[self.format]
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
            _, read = WHOLE_FILES[self.format]
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
    except (LookupError, TypeError, AttributeError) as error:
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
        except (OSError, ValueError) as error:  # ValueError: a name with a character that no file's can have
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) and error.errno not in _NO_FILE:
                raise
            problem = _missing(entry.image)
    return WebRecord(place=entry.place, image=image, examples=entry.examples, problem=problem)


def _missing(name: str) -> str:
    return f"its image {name.rpartition('/')[2][:80]} is missing"


def _entry(place: str, image: str | None, name: str, examples: tuple[WebExample, ...]) -> _Entry:
    """`image` is the path of the file that is called `name`, None where there is none."""
    return _Entry(place=place, image=image or "", examples=examples, problem=None if image else _missing(name))


def _named(place: str, folder: str, name: Any, examples: tuple[WebExample, ...]) -> _Entry:
    """An entry whose annotation names the image's file below `folder`, and may name one that is elsewhere."""
    leads_out = not isinstance(name, str) or name.startswith("/") or ".." in name.split("/")
    problem = f"its image {str(name)[:80]} is not named by a path below the folder of images" if leads_out else None
    return _Entry(place=place, image=f"{folder}/{name}", examples=examples, problem=problem)


def _vqa_index(filesystem: Any, root: str, split: str, image_root: str) -> list[_Entry]:
    """VQAv2 and OK-VQA: questions and annotations meet by question id; images are named by their id."""
    questions = _json_of(filesystem, root, split, "*questions.json", "questions")
    annotations = {a["question_id"]: a for a in _json_of(filesystem, root, split, "*annotations.json", "annotations")}
    images = _images_by_number(filesystem, image_root, split)
    grouped: dict[str, list[WebExample]] = {}
    entries = []
    for question in questions:
        annotation = annotations.get(question["question_id"])
        examples = answers_of(question["question"], annotation or {})
        if annotation is None:
            place = f"question {question['question_id']}"
            entries.append(_Entry(place=place, image="", examples=examples, problem="it has no annotation"))
            continue
        grouped.setdefault(_number(question["image_id"]), []).extend(examples)
    found = [_entry(f"image {n}", images.get(n), f"image {n}", tuple(examples)) for n, examples in grouped.items()]
    return found + entries


def _gqa_index(filesystem: Any, root: str, split: str, image_root: str) -> list[_Entry]:
    """GQA: {question id: {question, answer, imageId}}, in one file or in several."""
    images = {_stem(path): path for path in _image_files(filesystem, image_root)}
    grouped: dict[str, list[WebExample]] = {}
    for path in _files(filesystem, root, split, "*questions*.json"):
        for fields in parsed(filesystem.cat_file(path), path).values():
            grouped.setdefault(str(fields["imageId"]), []).extend(answers_of(fields["question"], fields))
    return [_entry(f"image {name}", images.get(name), name, tuple(examples)) for name, examples in grouped.items()]


def _coco_index(filesystem: Any, root: str, split: str, image_root: str) -> list[_Entry]:
    """COCO captions: images and annotations in one file; every caption of an image is a reference of the others."""
    path = _one_file(filesystem, root, split, "*captions*.json")
    data = parsed(filesystem.cat_file(path), path)
    found = {path.rpartition("/")[2]: path for path in _image_files(filesystem, image_root)}
    captions: dict[int, list[str]] = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    names = {image["id"]: str(image["file_name"]).rpartition("/")[2] for image in data["images"]}
    entries = []
    for number, texts in captions.items():
        examples, place, name = examples_of({"captions": texts}), f"image {number}", names.get(number)
        if name is None:
            problem = "it is not listed among the images"
            entries.append(_Entry(place=place, image="", examples=examples, problem=problem))
        else:
            entries.append(_entry(place, found.get(name), name, examples))
    return [entry for entry in entries if entry.examples]


def _easy_vqa_index(filesystem: Any, root: str, split: str, image_root: str) -> list[_Entry]:
    """easy-VQA: SPLIT/questions.json of [question, answer, image number], SPLIT/images/NUMBER.png."""
    path = f"{root}/{split}/questions.json"
    if not filesystem.exists(path):
        raise FileNotFoundError(f"{root} has no {split}/questions.json: give the unpacked easy-VQA data folder")
    grouped: dict[str, list[WebExample]] = {}
    for fields in parsed(filesystem.cat_file(path), path):
        grouped.setdefault(str(fields[2]), []).extend(answers_of(fields[0], {"answer": fields[1]}))
    folder = f"{image_root}/{split}/images"
    return [_named(f"image {n}", folder, f"{n}.png", tuple(examples)) for n, examples in grouped.items()]


def _jsonl_index(filesystem: Any, root: str, split: str, image_root: str) -> list[_Entry]:
    """JSON lines: fields as `examples_of` reads them, "image" a path beside the file; neighbours share an image."""
    path = _one_file(filesystem, root, split, "*.jsonl")
    name = path.rpartition("/")[2]
    folder = path.rpartition("/")[0] if image_root == root else image_root
    entries: list[_Entry] = []
    for number, line in enumerate(filesystem.cat_file(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        entry = _jsonl_entry(line, folder, f"{name}:{number}")
        if entry.problem is None and entry.image and entries and entries[-1].image == entry.image:
            last = entries.pop()
            entry = _Entry(place=last.place, image=last.image, examples=last.examples + entry.examples)
        entries.append(entry)
    return entries


def _jsonl_entry(line: bytes, folder: str, place: str) -> _Entry:
    try:
        fields = parsed(line, place)
        examples = examples_of(fields)
    except (ValueError, AttributeError):
        return _Entry(place=place, image="", examples=(), problem="the line is no JSON object")
    name = fields.get("image")
    if name in (None, ""):
        return _Entry(place=place, image="", examples=examples)
    return _named(place, folder, name, examples)


_INDEXES: dict[str, Callable[[Any, str, str, str], list[_Entry]]] = {
    "vqav2": _vqa_index,
    "okvqa": _vqa_index,
    "gqa": _gqa_index,
    "coco": _coco_index,
    "easy_vqa": _easy_vqa_index,
    "jsonl": _jsonl_index,
}


# --- Files ---


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
    data = parsed(filesystem.cat_file(path), path)
    if not isinstance(data, Mapping) or key not in data:
        raise ValueError(f"{path} has no list {key!r}: is --format the right one?")
    return data[key]


def _image_files(filesystem: Any, root: str) -> list[str]:
    return sorted(path for path in filesystem.find(root) if path.lower().endswith(IMAGE_SUFFIXES))


def _images_by_number(filesystem: Any, root: str, split: str) -> dict[str, str]:
    """Image files by the number that ends their name, those of the split's folder first."""
    numbered = [(re.search(r"(\d+)$", _stem(path)), path) for path in _image_files(filesystem, root)]
    ordered = sorted(numbered, key=lambda pair: split in pair[1][len(root) :])
    return {_number(match[1]): path for match, path in ordered if match}


def _number(value: Any) -> str:
    """An image's number without the zeros before it."""
    return str(value).lstrip("0")


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]
