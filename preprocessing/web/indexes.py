"""Layouts with an index: annotations in JSON, images in a folder -> entries, one an image, in the order of the source.

VQAv2 and OK-VQA (questions and annotations JSON), GQA (questions JSON), COCO captions JSON, easy-VQA, JSON lines and
LLaVA's JSON list. Every question, caption or line that is read becomes an example, with a problem where it cannot be
used; the same one twice, by the id that the layout gives it, counts as a duplicate. Images are only read from below the
folder they are said to lie in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count
from typing import TypeVar

from preprocessing.web.extra_fields import ExtraFields
from preprocessing.web.records import Identities, WebExample, not_its_own, parsed, parsed_once
from preprocessing.web.several_pictures import Pictured, pictured
from preprocessing.web.source_files import Folder, Pictures, below, beside, elsewhere, json_of, one_file, split_files
from preprocessing.web.texts import answers_of, examples_of, question_id, unusable, without_picture

T = TypeVar("T")

_Locate = Callable[[str], tuple[str, str | None]]
"""How a layout calls an image -> its path and no problem, or "" and why there is none."""

_TWO_QUESTIONS = "its id stands for two questions that differ"
_GQA_SUBSETS = ("all", "balanced")  # val_all and val_balanced, which is a part of it, are both split val


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The pictures of an index's record with its texts. `images` are paths; `problem` where none can be used."""

    place: str
    images: tuple[str, ...]
    examples: tuple[WebExample, ...]
    problem: str | None = None
    duplicates: int = 0


# --- Merging: what is read, by picture ---


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One question, one image's captions or one line, as it is read. `picture` is how the layout calls its image,
    `further` those after it, and `identity` the id that it has in the source; an item with a `problem` stands alone."""

    place: str
    examples: tuple[WebExample, ...]
    picture: str = ""
    further: tuple[str, ...] = ()
    identity: object = None
    problem: str | None = None

    def placed(self) -> tuple[WebExample, ...]:
        return tuple(replace(example, place=self.place) for example in self.examples)


def _judged(known: Identities, item: _Item) -> _Item | None:
    """`item`, with a problem if its id stands for something else already; None if it was read before."""
    verdict = known.judge(item.identity, ((item.picture, *item.further), item.problem, item.examples))
    if verdict == "again":
        return None
    return item if verdict == "new" else replace(item, problem=not_its_own(item.identity))


def _by_picture(items: Iterable[_Item], locate: _Locate, pictures: Sequence[str] = ()) -> list[Entry]:
    """An entry for each picture, in the order of `pictures` and then of their first mention; at the end what stands
    alone. `locate` gives a picture's path, or its problem."""
    known = Identities()
    duplicates = Counter[str]()
    alone = []
    grouped: dict[str, list[WebExample]] = {picture: [] for picture in pictures}
    for item in items:
        taken = _judged(known, item)
        if taken is None:
            duplicates[item.picture] += len(item.examples)
        elif taken.problem is not None:
            alone.append(_entry(taken))
        else:
            grouped.setdefault(taken.picture, []).extend(taken.placed())
    entries = []
    for picture, examples in grouped.items():
        image, problem = locate(picture)
        again = duplicates.pop(picture, 0)
        place = f"image {picture}"
        texts = tuple(examples)
        images = (image,) if image else ()
        entries.append(Entry(place=place, images=images, examples=texts, problem=problem, duplicates=again))
    left = (Entry(place=f"image {p}", images=(), examples=(), duplicates=again) for p, again in duplicates.items())
    return [*entries, *alone, *left]


def _entry(item: _Item) -> Entry:
    examples = item.placed()
    return Entry(place=item.place, images=(), examples=examples, problem=item.problem)


def _side_by_side(items: Iterable[_Item], locate: _Locate) -> list[Entry]:
    """An entry for each item in their order; neighbours about the same pictures are one."""
    known = Identities()
    entries = list[Entry]()
    for item in items:
        taken = _judged(known, item)
        if taken is None:  # something was read before it
            entries[-1] = replace(entries[-1], duplicates=entries[-1].duplicates + len(item.examples))
            continue
        located = [locate(name) for name in (taken.picture, *taken.further) if name]
        images = tuple(path for path, _ in located)
        problem = taken.problem or next((problem for _, problem in located if problem), None)
        entry = replace(_entry(taken), images=images, problem=problem)
        last = entries[-1] if entries else None
        if last and entry.problem is None and last.problem is None and images and last.images == images:
            entries[-1] = replace(last, examples=last.examples + entry.examples)
        else:
            entries.append(entry)
    return entries


def _each(things: Iterable[T], read: Callable[[T], _Item], what: str) -> Iterator[_Item]:
    """What `read` makes of each; one that is laid out in another way costs itself, and if all are, that is raised."""
    wrong = 0
    number = 0
    first = None
    for number, thing in enumerate(things, start=1):
        try:
            yield read(thing)
        except (LookupError, TypeError, AttributeError) as error:
            wrong += 1
            first = first or error
            problem = f"it is not laid out as a {what} ({type(error).__name__}: {error})"
            yield _Item(place=f"{what} {number} of the file", examples=(unusable(problem),), problem=problem)
    if first is not None and wrong == number:
        raise first


# --- Layouts ---


def _vqa(folder: Folder) -> list[Entry]:
    """VQAv2 and OK-VQA: questions and annotations meet by question id; images are named by their id."""
    questions = json_of(folder, "*questions.json", "questions")
    annotations, unreadable = _annotations(json_of(folder, "*annotations.json", "annotations"))
    pictures = Pictures(folder, _last_number)
    questioned = set[str]()
    contradicted = _contradicted(questions)

    def question(fields: Mapping[str, object]) -> _Item:
        identity = str(fields["question_id"])
        number = _number(fields["image_id"])
        annotation = annotations.get(identity, {})
        questioned.add(identity)
        return _Item(
            place=f"question {identity}",
            examples=(answers_of(fields["question"], annotation),),
            picture=number,
            identity=identity,
            problem=_mismatch(annotations, identity, number) if identity not in contradicted else _TWO_QUESTIONS,
        )

    items = list(_each(questions, question, "question"))
    unasked = (_alone(f"annotation of question {i}", "it has no question") for i in annotations if i not in questioned)
    return _by_picture([*items, *unasked, *unreadable], lambda n: pictures.locate(n, f"image {n}"))


def _annotations(listed: Iterable[object]) -> tuple[dict[str, Mapping[str, object]], list[_Item]]:
    """Annotations by question id ({} where two contradict each other), and those that have none."""
    annotations: dict[str, Mapping[str, object]] = {}
    unreadable = []
    for number, annotation in enumerate(listed, start=1):
        if not isinstance(annotation, Mapping) or annotation.get("question_id") is None:
            unreadable.append(_alone(f"annotation {number} of the file", "it has no question_id"))
            continue
        identity = str(annotation["question_id"])
        annotations[identity] = annotation if annotations.get(identity, annotation) == annotation else {}
    return annotations, unreadable


def _contradicted(questions: Iterable[object]) -> set[str]:
    """Ids that two questions have which differ: the annotation is one's, and nothing says whose."""
    known = Identities()
    whole = (q for q in questions if isinstance(q, Mapping) and {"question_id", "question", "image_id"} <= q.keys())
    contents = ((str(q["question_id"]), (str(q["question"]), str(q["image_id"]))) for q in whole)
    return {identity for identity, content in contents if known.judge(identity, content) == "other"}


def _mismatch(annotations: Mapping[str, Mapping[str, object]], identity: str, number: str) -> str | None:
    annotation = annotations.get(identity)
    if annotation is None:
        return "it has no annotation"
    if not annotation:
        return "it has two annotations that differ"
    same = _number(annotation.get("image_id", number)) == number
    return None if same else "its annotation is about another image"


def _alone(place: str, problem: str) -> _Item:
    return _Item(place=place, examples=(unusable(problem),), problem=problem)


def _gqa(folder: Folder) -> list[Entry]:
    """GQA: {question id: {question, answer, imageId}}, in one file or in several, some of which hold a part of others:
    the balanced questions are among all, and count once."""
    pictures = Pictures(folder, _stem)
    named = split_files(folder, "*questions*.json", subsets=_GQA_SUBSETS)
    read = (parsed_once(folder.filesystem.cat_file(path), path).items() for path in named)

    def question(pair: tuple[str, Mapping[str, object]]) -> _Item:
        identity, fields = pair
        examples = (answers_of(fields["question"], fields),)
        return _Item(place=f"question {identity}", examples=examples, picture=str(fields["imageId"]), identity=identity)

    return _by_picture(_each(chain.from_iterable(read), question, "question"), lambda n: pictures.locate(n, n))


def _coco(folder: Folder) -> list[Entry]:
    """COCO captions: images and annotations in one file; every caption of an image is a reference of the others."""
    path = one_file(folder, "*captions*.json")
    data = parsed(folder.filesystem.cat_file(path), path)
    pictures = Pictures(folder, lambda path: path.rpartition("/")[2])
    names, unreadable = _file_names(data["images"])

    def annotation(fields: Mapping[str, object]) -> _Item:
        identity = fields.get("id")
        (example,) = examples_of({"captions": [fields["caption"]]})
        place = f"image {fields['image_id']}" if identity is None else f"annotation {identity}"
        return _Item(place=place, examples=(example,), picture=str(fields["image_id"]), identity=identity)

    def locate(number: str) -> tuple[str, str | None]:
        if len(names.get(number, ())) != 1:
            return "", f"it is {'listed with several names' if number in names else 'not listed'} among the images"
        (name,) = names[number]
        return pictures.locate(name.rpartition("/")[2], name, path=name)

    entries = _by_picture([*_each(data["annotations"], annotation, "caption"), *unreadable], locate, list(names))
    return [_with_references(entry) for entry in entries]


def _file_names(images: Iterable[object]) -> tuple[dict[str, set[str]], list[_Item]]:
    """The names that images are listed with, by their id, and what is listed without."""
    names: dict[str, set[str]] = {}
    unreadable = []
    for number, image in enumerate(images, start=1):
        if isinstance(image, Mapping) and "id" in image and "file_name" in image:
            names.setdefault(str(image["id"]), set()).add(str(image["file_name"]))
        else:
            unreadable.append(_alone(f"image {number} of the file", "it is listed without id and file_name"))
    return names, unreadable


def _with_references(entry: Entry) -> Entry:
    """All captions of an image as references of each."""
    captions = tuple(example.answer for example in entry.examples if example.problem is None)
    if not entry.examples and not entry.duplicates:
        return replace(entry, examples=(unusable("it has no caption"),))
    return replace(entry, examples=tuple(replace(example, references=captions) for example in entry.examples))


def _easy_vqa(folder: Folder) -> list[Entry]:
    """easy-VQA: SPLIT/questions.json of [question, answer, image number], SPLIT/images/NUMBER.png."""
    path = f"{folder.root}/{folder.split}/questions.json"
    if not folder.filesystem.exists(path):
        raise FileNotFoundError(
            f"{folder.root} has no {folder.split}/questions.json: give the unpacked easy-VQA data folder"
        )
    numbers = count(1)

    def question(fields: Sequence[object]) -> _Item:
        place = f"question {next(numbers)} of the file"
        return _Item(place=place, examples=(answers_of(fields[0], {"answer": fields[1]}),), picture=str(fields[2]))

    images = f"{folder.images}/{folder.split}/images"
    listed = parsed(folder.filesystem.cat_file(path), path)
    return _by_picture(_each(listed, question, "question"), lambda n: below(images, f"{n}.png"))


def _jsonl(folder: Folder) -> list[Entry]:
    """JSON lines: fields as `examples_of` reads them, "image" a path beside the file, or several (`several_pictures`);
    neighbours share an image."""
    path = one_file(folder, "*.jsonl")
    lines = folder.filesystem.cat_file(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    name = path.rpartition("/")[2]
    items = (
        _line(line, f"{name}:{number}", folder.extra) for number, line in enumerate(lines, start=1) if line.strip()
    )
    return _side_by_side(items, partial(below, beside(folder, path)))


def _llava(folder: Folder) -> list[Entry]:
    """LLaVA: one JSON list of {image, conversations}; an element is what a line of JSON lines is."""
    path = one_file(folder, "*.json")
    listed = parsed(folder.filesystem.cat_file(path), path)
    name = path.rpartition("/")[2]
    if not isinstance(listed, list):
        raise TypeError(f"{name} is no list")
    items = (_fields_item(fields, f"{name}:{number}", folder.extra) for number, fields in enumerate(listed, start=1))
    return _side_by_side(items, partial(below, beside(folder, path)))


def _line(line: bytes, place: str, extra: ExtraFields) -> _Item:
    try:
        fields = parsed_once(line, place)
    except ValueError as error:
        return _alone(place, f"the line {_line_problem(str(error))}")
    return _fields_item(fields, place, extra, what="the line")


def _line_problem(error: str) -> str:
    if "Extra data" in error:
        return "holds more than one JSON object"
    return "gives a field twice" if "is given twice" in error else "is no JSON object"


def _fields_item(fields: object, place: str, extra: ExtraFields, *, what: str = "it") -> _Item:
    if not isinstance(fields, Mapping):
        return _alone(place, f"{what} is no JSON object")
    several = pictured(fields, extra)
    fields = fields if several is None else several.fields
    examples = extra.added(examples_of(fields), fields)
    if several is not None and (several.problem or several.pictures):
        return _several_item(several, place, examples, question_id(fields))
    name = fields.get("image")
    if name in (None, ""):
        return _Item(place=place, examples=without_picture(fields, examples), identity=question_id(fields))
    if not isinstance(name, str):
        return _Item(place=place, examples=examples, problem=elsewhere(name))
    return _Item(place=place, examples=examples, picture=name, identity=question_id(fields))


def _several_item(several: Pictured, place: str, examples: tuple[WebExample, ...], identity: object) -> _Item:
    names = [name for name in several.pictures if isinstance(name, str) and name]
    if several.problem or len(names) < len(several.pictures):
        wrong = next((elsewhere(name) for name in several.pictures if not isinstance(name, str) or not name), None)
        return _Item(place=place, examples=examples, problem=several.problem or wrong)
    return _Item(place=place, examples=examples, picture=names[0], further=tuple(names[1:]), identity=identity)


# --- How images are called ---


def _number(value: object) -> str:
    """An image's number without the zeros before it."""
    return str(value).lstrip("0")


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]


def _last_number(path: str) -> str:
    match = re.search(r"(\d+)$", _stem(path))
    return _number(match[1]) if match else "no number"


INDEXES: dict[str, Callable[[Folder], list[Entry]]] = {
    "vqav2": _vqa,
    "okvqa": _vqa,
    "gqa": _gqa,
    "coco": _coco,
    "easy_vqa": _easy_vqa,
    "jsonl": _jsonl,
    "llava": _llava,
}
